//! A daemon whose configuration can change while it runs.
#![allow(dead_code)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use undertone::config::Config;
use undertone::engine::{Engine, EngineOptions};
use undertone::fake;
use undertone::service::{self, Bound, Summary};

pub(crate) struct Reloadable {
    pub(crate) codes: SocketAddr,
    /// That of codes first; those of `[http]` and `[quic]`, as far as they are asked for, behind it.
    pub(crate) addresses: Vec<SocketAddr>,
    stop: oneshot::Sender<()>,
    running: JoinHandle<Summary>,
    config: watch::Sender<Arc<Config>>,
    _engine: Engine,
}

fn config(text: &str) -> Arc<Config> {
    let http = if text.contains("[http]") { "" } else { "[http]\nlisten = \"\"\n" };
    let text = format!("pcm_input = []\npcm_output = []\n{text}\n{http}[codes]\nlisten = \"127.0.0.1:0\"\n");
    Arc::new(Config::parse(&text).unwrap())
}

impl Reloadable {
    pub(crate) async fn start(text: &str) -> Self {
        let options = EngineOptions { threads: 1, slots: 2, max_batch: 1, gather: Duration::ZERO, pin: false };
        let engine = Engine::start(&options, || Ok::<_, String>(fake::processor(16, 7))).unwrap();
        let bound = Bound::open(&config(text)).await.unwrap();
        let (codes, addresses) = (bound.addresses[0], bound.addresses.clone());
        let (stop, stopped) = oneshot::channel();
        let (sender, receiver) = watch::channel(config(text));
        let running = tokio::spawn(service::run(bound, engine.handle(), None, receiver, async {
            let _ = stopped.await;
        }));
        Self { codes, addresses, stop, running, config: sender, _engine: engine }
    }

    /// What SIGHUP does with a file that may be read again.
    pub(crate) fn reload(&self, text: &str) {
        self.config.send_replace(config(text));
    }

    pub(crate) async fn stop(self) -> Summary {
        let _ = self.stop.send(());
        tokio::time::timeout(Duration::from_secs(20), self.running).await.expect("the daemon stops").unwrap()
    }
}
