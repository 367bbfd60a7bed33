//! TLS of listeners and of clients. The only file that names rustls.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::config::Tls;

/// A connection, encrypted or not.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A connection, encrypted or not.
pub(super) type Socket = Box<dyn Duplex>;

/// What both ends of QUIC say that they speak.
const QUIC_PROTOCOL: &[u8] = b"undertone";

/// Keys and certificates of a port for QUIC.
pub(super) type QuicSide = Arc<ServerConfig>;

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
    /// QUIC cannot use them.
    #[error("QUIC: {0}")]
    Quic(String),
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
    /// Of connections over TCP, and over QUIC.
    sides: RwLock<(TlsAcceptor, QuicSide)>,
}

impl Server {
    pub(super) fn load(tls: &Tls) -> Result<Self, TlsError> {
        Ok(Self { sides: RwLock::new(sides(tls)?) })
    }

    /// Takes renewed files; if they do not work, the old ones stay.
    pub(super) fn reload(&self, tls: &Tls) -> Result<(), TlsError> {
        let new = sides(tls)?;
        *self.sides.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    pub(super) fn quic(&self) -> QuicSide {
        Arc::clone(&self.sides.read().unwrap_or_else(PoisonError::into_inner).1)
    }

    /// A certificate made in memory, for a port that only this machine reaches.
    pub(super) fn made_here() -> Result<QuicSide, TlsError> {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]);
        let made = made.map_err(|e| TlsError::Quic(e.to_string()))?;
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
        let config = builder.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key.into())?;
        Ok(quic_side(config))
    }

    /// The server's half of the handshake; the caller sets the deadline.
    pub(super) async fn accept(&self, socket: TcpStream) -> io::Result<Socket> {
        let acceptor = self.sides.read().unwrap_or_else(PoisonError::into_inner).0.clone();
        Ok(Box::new(acceptor.accept(socket).await.map_err(explained)?))
    }
}

fn quic_side(mut config: ServerConfig) -> QuicSide {
    config.alpn_protocols = vec![QUIC_PROTOCOL.to_vec()];
    Arc::new(config)
}

fn sides(tls: &Tls) -> Result<(TlsAcceptor, QuicSide), TlsError> {
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
    Ok((TlsAcceptor::from(Arc::new(config.clone())), quic_side(config)))
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
    /// # Errors
    /// [`TlsError`] naming the file.
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
        let name = self.name.as_deref().unwrap_or(host(address)).to_owned();
        let name = ServerName::try_from(name.clone())
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, TlsError::Name(name)))?;
        Ok(Box::new(self.connector.connect(name, socket).await.map_err(explained)?))
    }

    /// The client's half of a handshake over QUIC with the server at `address`, which is `server`, and the name that its
    /// certificate must have. Without authorities, a server on this machine is trusted, as it is without TLS.
    pub(super) fn quic(
        tls: Option<&Self>,
        address: &str,
        server: SocketAddr,
    ) -> io::Result<(Arc<ClientConfig>, String)> {
        let (mut config, name) = match tls {
            Some(tls) => {
                let name = tls.name.as_deref().unwrap_or(host(address));
                (ClientConfig::clone(tls.connector.config()), name.to_owned())
            }
            None if server.ip().to_canonical().is_loopback() => (here()?, "localhost".to_owned()),
            None => {
                let why = "QUIC is encrypted, and only a server on this machine is trusted without knowing who signed \
                           its certificate: give --tls and --ca FILE";
                return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
            }
        };
        config.alpn_protocols = vec![QUIC_PROTOCOL.to_vec()];
        Ok((Arc::new(config), name))
    }
}

fn host(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']'])
}

/// Trusts whoever answers.
fn here() -> io::Result<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let builder = builder.map_err(io::Error::other)?.dangerous();
    let verifier = Arc::new(AnyServer(provider()));
    Ok(builder.with_custom_certificate_verifier(verifier).with_no_client_auth())
}

/// Takes any certificate: for servers on this machine, which plain TCP would not ask for one, either.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
