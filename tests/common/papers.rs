//! Certificates for tests.
#![allow(dead_code)]

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use undertone::service::{ClientOptions, ClientTls};

/// An authority and what it signed, in files that go away with it.
pub(crate) struct Papers {
    dir: tempfile::TempDir,
    authority: Vec<u8>,
}

impl Papers {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let authority = params.self_signed(&key).unwrap();
        std::fs::write(dir.path().join("ca.pem"), authority.pem()).unwrap();
        let issuer = Issuer::new(params, key);
        for (name, usage) in
            [("server", ExtendedKeyUsagePurpose::ServerAuth), ("client", ExtendedKeyUsagePurpose::ClientAuth)]
        {
            let mut params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
            params.extended_key_usages = vec![usage];
            let key = KeyPair::generate().unwrap();
            let certificate = params.signed_by(&key, &issuer).unwrap();
            std::fs::write(dir.path().join(format!("{name}.pem")), certificate.pem()).unwrap();
            std::fs::write(dir.path().join(format!("{name}.key")), key.serialize_pem()).unwrap();
        }
        Self { dir, authority: authority.der().to_vec() }
    }

    /// The authority's certificate in DER.
    pub(crate) fn authority(&self) -> Vec<u8> {
        self.authority.clone()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn section(&self, with_clients: bool) -> String {
        let show = |name| self.path(name).display().to_string();
        let client = if with_clients { format!("client_ca = \"{}\"\n", show("ca.pem")) } else { String::new() };
        format!("[tls]\ncert = \"{}\"\nkey = \"{}\"\n{client}", show("server.pem"), show("server.key"))
    }

    pub(crate) fn options(&self, identity: bool) -> ClientOptions {
        let (cert, key) = (self.path("client.pem"), self.path("client.key"));
        let identity: (Option<&Path>, Option<&Path>) = if identity { (Some(&cert), Some(&key)) } else { (None, None) };
        ClientOptions { tls: Some(ClientTls::new(&self.path("ca.pem"), identity).unwrap()), ..Default::default() }
    }
}
