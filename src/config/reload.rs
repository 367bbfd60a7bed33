//! What a reload changes, and what only a restart does.

use super::{Codec, Config, ConfigError, Http, Limits, Log};

impl Config {
    /// Keys that differ in `new` and take effect only after a restart.
    pub fn needs_restart(&self, new: &Self) -> Vec<&'static str> {
        [
            ("pcm_input", self.pcm_input != new.pcm_input),
            ("pcm_output", self.pcm_output != new.pcm_output),
            ("device_input", self.device_input != new.device_input),
            ("device_output", self.device_output != new.device_output),
            ("http.listen", self.http.listen != new.http.listen),
            ("record", self.record != new.record),
            ("quic.listen", self.quic != new.quic),
            ("codes.listen", self.codes != new.codes),
            ("nats", self.nats != new.nats),
            ("tls (its files may change)", self.tls != new.tls),
            ("limits.send_buffer_bytes", self.limits.send_buffer != new.limits.send_buffer),
            ("limits.coded_sessions", self.limits.coded_sessions != new.limits.coded_sessions),
            ("codec.model", self.codec.model != new.codec.model),
            ("codec.effort (from off)", self.codec.is_never_searched() && !new.codec.is_never_searched()),
            ("engine", self.engine != new.engine),
            ("log.target", self.log.target != new.log.target),
        ]
        .into_iter()
        .filter_map(|(key, differs)| differs.then_some(key))
        .collect()
    }

    /// What is in force once a process that started with `self` has read `new`: the keys of
    /// [`Config::needs_restart`] stay as they are, and whether addresses are guarded is asked of what results. Were it
    /// asked of `new`, taking the login away together with a port that stays open would open that port to everybody.
    ///
    /// # Errors
    /// [`ConfigError::Value`] for an address that would be without its guard until the restart.
    pub fn reloaded(&self, new: Self) -> Result<Self, ConfigError> {
        let started = self.clone();
        let config = Self {
            pcm_input: started.pcm_input,
            pcm_output: started.pcm_output,
            device_input: started.device_input,
            device_output: started.device_output,
            http: Http { listen: started.http.listen, ..new.http },
            record: started.record,
            quic: started.quic,
            codes: started.codes,
            nats: started.nats,
            tls: started.tls,
            limits: Limits {
                send_buffer: started.limits.send_buffer,
                coded_sessions: started.limits.coded_sessions,
                ..new.limits
            },
            codec: Codec { model: started.codec.model, ..new.codec },
            engine: started.engine,
            log: Log { target: started.log.target, ..new.log },
            ..new
        };
        config.check_addresses()?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TLS: &str = "[tls]\ncert = \"c\"\nkey = \"k\"\n";
    const CERTIFIED: &str = "[tls]\ncert = \"c\"\nkey = \"k\"\nclient_ca = \"ca\"\n";
    const TOKEN: &str = "[[token]]\nname = \"a\"\nsecret = \"0123456789abcdef\"\nlisten = [\"*\"]\n";
    const PUBLIC: &str = "listen = \"0.0.0.0:7701\"\n";

    #[test]
    fn a_reload_says_what_it_cannot_change() {
        let old = Config::default();
        let new = Config::parse("[codec]\nkbps = 3\n[codes]\nlisten = \"127.0.0.1:1\"\n[engine]\nslots = 3").unwrap();
        assert_eq!(old.needs_restart(&new), ["codes.listen", "engine"]);
        let result = old.reloaded(new.clone()).unwrap();
        assert_eq!((result.codes, result.engine, result.codec.stages), (old.codes, old.engine, new.codec.stages));
    }

    #[test]
    fn whatever_needs_a_restart_stays_as_it_was() {
        let new = "[[pcm_input]]\nlisten = \"127.0.0.1:1\"\nstream = \"x\"\n[[pcm_output]]\nlisten = \"127.0.0.1:2\"\n\
                   stream = \"x\"\n[[device_input]]\nstream = \"x\"\n[[device_output]]\nstream = \"x\"\n[http]\nlisten = \"\"\n\
                   [record]\nfolder = \"/x\"\n[quic]\nlisten = \"127.0.0.1:3\"\n[codes]\nlisten = \"\"\n[nats]\n\
                   url = \"nats://x\"\n[tls]\ncert = \"c\"\nkey = \"k\"\n[limits]\nsend_buffer_bytes = 5000\n\
                   coded_sessions = 1\nmax_connections = 9\n[codec]\nmodel = \"/x\"\n[engine]\nslots = 5\n[log]\n\
                   target = \"stderr\"\nlevel = \"warn\"\n";
        let (old, new) = (Config::default(), Config::parse(new).unwrap());
        assert_eq!(old.needs_restart(&new).len(), 15);
        let result = old.reloaded(new).unwrap();
        assert_eq!(old.needs_restart(&result), [""; 0]);
        assert_eq!((result.limits.max_connections, result.log.level.as_str()), (9, "warn"));
    }

    #[test]
    fn a_reload_never_takes_the_guard_off_a_port_that_stays_open() {
        let public_raw = "[[pcm_output]]\nlisten = \"0.0.0.0:7702\"\nstream = \"a\"\n";
        for (what, old, new) in [
            ("tokens go, the port moves", format!("[codes]\n{PUBLIC}{TLS}{TOKEN}"), TLS.to_owned()),
            (
                "tokens go, the port is switched off",
                format!("[codes]\n{PUBLIC}{TLS}{TOKEN}"),
                "[codes]\nlisten = \"\"".to_owned(),
            ),
            (
                "tokens go, client_ca comes, which needs a restart",
                format!("[codes]\n{PUBLIC}{TLS}{TOKEN}"),
                format!("[codes]\n{PUBLIC}{CERTIFIED}"),
            ),
            ("allow_public goes, the raw port moves", format!("allow_public = true\n{public_raw}"), String::new()),
            (
                "allow_public goes, TLS comes",
                format!("allow_public = true\n{public_raw}"),
                format!("{public_raw}{CERTIFIED}"),
            ),
            (
                "allow_public goes, QUIC moves",
                format!("allow_public = true\n[quic]\nlisten = \"0.0.0.0:7704\"\n{TLS}"),
                TLS.to_owned(),
            ),
            ("tokens go, the page moves", format!("[http]\nlisten = \"0.0.0.0:7703\"\n{TLS}{TOKEN}"), TLS.to_owned()),
            (
                "the page's token is not asked for, on an address that is loopback only in the file",
                format!("[http]\nlisten = \"0.0.0.0:7703\"\n{TLS}{TOKEN}"),
                format!("[http]\nstatus_without_token = true\n{TLS}{TOKEN}"),
            ),
        ] {
            let (old, new) = (Config::parse(&old).expect(what), Config::parse(&new).expect(what));
            assert!(matches!(old.reloaded(new), Err(ConfigError::Value { .. })), "{what}");
        }
        // The client certificates that are in force stay a login, whatever the file says.
        let (old, new) = (format!("{public_raw}{CERTIFIED}"), String::new());
        let result = Config::parse(&old).unwrap().reloaded(Config::parse(&new).unwrap()).unwrap();
        assert!(result.tls.unwrap().client_ca.is_some());
    }
}
