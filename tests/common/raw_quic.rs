//! A client of QUIC that writes what it likes, and sees datagrams as they are.
#![allow(dead_code)]

use std::net::SocketAddr;
use std::sync::Arc;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, Endpoint, RecvStream, SendStream, TransportConfig};
use undertone::session::{Close, Message};
use undertone::wire::Framer;

use crate::common::within;
use crate::papers::Papers;

/// One connection.
pub(crate) struct Raw {
    _endpoint: Endpoint,
    pub(crate) connection: Connection,
}

impl Raw {
    pub(crate) async fn connect(server: SocketAddr, papers: &Papers, transport: TransportConfig) -> Self {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(papers.authority().into()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut tls = tls.with_root_certificates(roots).with_no_client_auth();
        tls.alpn_protocols = vec![b"undertone".to_vec()];
        let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
        config.transport_config(Arc::new(transport));
        let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let connection = within(endpoint.connect_with(config, server, "localhost").unwrap()).await.unwrap();
        Self { _endpoint: endpoint, connection }
    }

    /// Begins the stream of messages with these bytes.
    pub(crate) async fn say(&self, bytes: &[u8]) -> (SendStream, RecvStream) {
        let (mut send, recv) = within(self.connection.open_bi()).await.unwrap();
        send.write_all(bytes).await.unwrap();
        (send, recv)
    }

    /// The server's last words; None if it hung up without.
    pub(crate) async fn last_words(self, (_send, mut recv): (SendStream, RecvStream)) -> Option<Close> {
        let (mut framer, mut chunk) = (Framer::default(), [0; 1024]);
        while let Ok(Some(n)) = within(recv.read(&mut chunk)).await {
            framer.push(&chunk[..n]);
            while let Some(message) = framer.next().unwrap() {
                if let Message::Close(close) = message {
                    self.connection.close(0u8.into(), b"");
                    return Some(close);
                }
            }
        }
        None
    }
}
