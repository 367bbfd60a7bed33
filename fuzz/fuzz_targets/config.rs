//! A configuration: no panic, no secret in an error, and what is accepted survives a reload of itself.
#![no_main]

use libfuzzer_sys::fuzz_target;
use undertone::config::Config;

/// Stands where the input says `@`: a secret that nobody's error may show.
const SECRET: &str = "9f86d081884c7d659a2feaa0c55ad015";

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // Files that the text names are not read: what is in them is nobody's input here.
    if text.contains("secret_file") {
        return;
    }
    match Config::parse(&text.replace('@', SECRET)) {
        Ok(config) => {
            assert!(!quotes_what_may_be_secret(text) || !format!("{config:?}").contains(SECRET));
            let again = config.reloaded(config.clone()).expect("what is in force may be read again");
            assert_eq!(again, config);
            assert!(config.needs_restart(&again).is_empty());
            // Taking away whatever is not asked for must not open a port.
            if let Ok(after) = config.reloaded(Config::default()) {
                assert_eq!(after.codes, config.codes);
                let public = after.codes.is_some_and(|a| !a.ip().is_loopback());
                let login = !after.tokens.is_empty() || after.tls.as_ref().is_some_and(|t| t.client_ca.is_some());
                assert!(!public || after.allow_public || login);
            }
        }
        Err(e) if quotes_what_may_be_secret(text) => assert!(!e.to_string().contains(SECRET), "{e}"),
        Err(_) => {}
    }
});

/// Whether the `@` stands only where a secret does: as the value of `secret`, or in the address of NATS.
fn quotes_what_may_be_secret(text: &str) -> bool {
    text.match_indices('@').all(|(at, _)| {
        let line = &text[text[..at].rfind('\n').map_or(0, |n| n + 1)..at];
        let line = line.trim_start();
        line.starts_with("secret = \"") || line.starts_with("url = \"nats://me:")
    })
}
