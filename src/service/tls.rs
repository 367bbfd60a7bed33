//! TLS of listeners and of clients. The only file that names rustls.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::config::Tls;

/// A connection, encrypted or not.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A connection, encrypted or not.
pub(super) type Socket = Box<dyn Duplex>;

/// Random bytes that nobody can guess; None if the system has none.
pub(super) fn random<const N: usize>() -> Option<[u8; N]> {
    let mut bytes = [0; N];
    ring::default_provider().secure_random.fill(&mut bytes).ok().map(|()| bytes)
}

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file could not be read, or holds something else.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The key is another certificate's.
    #[error("the key in {key} does not belong to the first certificate in {cert}")]
    Pair {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// The files cannot be used.
    #[error("TLS: {0}")]
    Rustls(#[from] rustls::Error),
    /// The authorities cannot check clients.
    #[error("tls.client_ca: {0}")]
    Clients(String),
    /// Not a name that a certificate can have.
    #[error("{0} is not a server name that a certificate can have")]
    Name(String),
    /// A client certificate without its key, or the other way round.
    #[error("a client certificate and its key must both be given")]
    Half,
}

fn file(path: &Path) -> impl Fn(rustls::pki_types::pem::Error) -> TlsError + '_ {
    |e| TlsError::File { path: path.to_owned(), reason: e.to_string() }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_file_iter(path).map_err(file(path))?;
    let all = read.collect::<Result<Vec<_>, _>>().map_err(file(path))?;
    if all.is_empty() {
        return Err(TlsError::File { path: path.to_owned(), reason: "no certificate in it (PEM wanted)".to_owned() });
    }
    Ok(all)
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(|e| {
        let named = |reason: &str| TlsError::File { path: path.to_owned(), reason: reason.to_owned() };
        let text = std::fs::read(path).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default();
        // Both ways in which PEM says so: PKCS #8, and the headers of OpenSSL before it.
        if text.contains("BEGIN ENCRYPTED PRIVATE KEY") || text.contains("Proc-Type: 4,ENCRYPTED") {
            return named("the key is encrypted, and nobody could type its password: openssl pkey -in FILE -out PLAIN");
        }
        match e {
            rustls::pki_types::pem::Error::NoItemsFound => named("no private key in it (PEM wanted)"),
            e => file(path)(e),
        }
    })
}

/// What a failed handshake means for people; None if its own words say it.
fn cause(e: &io::Error) -> Option<&'static str> {
    use rustls::{AlertDescription, CertificateError, Error};
    if e.kind() == io::ErrorKind::UnexpectedEof {
        return Some("the peer hung up in the TLS handshake: perhaps it does not speak TLS on this port");
    }
    match e.get_ref()?.downcast_ref::<Error>()? {
        Error::InvalidMessage(_) => Some("the peer does not speak TLS on this port"),
        Error::AlertReceived(AlertDescription::CertificateRequired) => {
            Some("the server asks for a client certificate (--cert and --key)")
        }
        Error::AlertReceived(AlertDescription::UnknownCA) => Some("the peer does not know who signed our certificate"),
        Error::NoCertificatesPresented => Some("the client showed no certificate, and tls.client_ca asks for one"),
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            Some("the certificate was signed by none of the authorities given (--ca, or tls.client_ca)")
        }
        _ => None,
    }
}

/// The error of a handshake with its cause in front.
fn explained(e: io::Error) -> io::Error {
    match cause(&e) {
        Some(cause) => io::Error::new(e.kind(), format!("{cause} ({e})")),
        None => e,
    }
}

fn authorities(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate)?;
    }
    Ok(roots)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// The listeners' side. The files can be read again while the daemon runs.
pub(super) struct Server {
    acceptor: RwLock<TlsAcceptor>,
}

impl Server {
    pub(super) fn load(tls: &Tls) -> Result<Self, TlsError> {
        Ok(Self { acceptor: RwLock::new(acceptor(tls)?) })
    }

    /// Takes renewed files; if they do not work, the old ones stay.
    pub(super) fn reload(&self, tls: &Tls) -> Result<(), TlsError> {
        let new = acceptor(tls)?;
        *self.acceptor.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    /// The server's half of the handshake; the caller sets the deadline.
    pub(super) async fn accept(&self, socket: TcpStream) -> io::Result<Socket> {
        let acceptor = self.acceptor.read().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(Box::new(acceptor.accept(socket).await.map_err(explained)?))
    }
}

fn acceptor(tls: &Tls) -> Result<TlsAcceptor, TlsError> {
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = match &tls.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let roots = Arc::new(authorities(path)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider()).build();
            builder.with_client_cert_verifier(verifier.map_err(|e| TlsError::Clients(e.to_string()))?)
        }
    };
    let config = builder.with_single_cert(certificates(&tls.cert)?, key(&tls.key)?).map_err(|e| match e {
        rustls::Error::InconsistentKeys(_) => TlsError::Pair { cert: tls.cert.clone(), key: tls.key.clone() },
        e => TlsError::Rustls(e),
    })?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// A client's side: whom it trusts, and what it shows.
#[derive(Clone)]
pub struct ClientTls {
    connector: TlsConnector,
    name: Option<String>,
}

impl std::fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientTls").field("name", &self.name).finish_non_exhaustive()
    }
}

impl ClientTls {
    /// Trusts the authorities in the PEM file `ca`; `identity` is a client certificate and its key.
    ///
    /// Errors: [`TlsError`] naming the file.
    pub fn new(ca: &Path, identity: (Option<&Path>, Option<&Path>)) -> Result<Self, TlsError> {
        let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
        let builder = builder.with_root_certificates(authorities(ca)?);
        let config = match identity {
            (None, None) => builder.with_no_client_auth(),
            (Some(cert), Some(secret)) => builder.with_client_auth_cert(certificates(cert)?, key(secret)?)?,
            _ => return Err(TlsError::Half),
        };
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), name: None })
    }

    /// Expects this name in the server's certificate instead of the host of the address.
    #[must_use]
    pub fn with_server_name(self, name: Option<String>) -> Self {
        Self { name, ..self }
    }

    /// The client's half of the handshake with the server at `address` (HOST:PORT).
    pub(super) async fn connect(&self, address: &str, socket: TcpStream) -> io::Result<Socket> {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']);
        let name = self.name.as_deref().unwrap_or(host).to_owned();
        let name = ServerName::try_from(name.clone())
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, TlsError::Name(name)))?;
        Ok(Box::new(self.connector.connect(name, socket).await.map_err(explained)?))
    }
}
