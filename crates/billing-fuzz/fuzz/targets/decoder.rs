//! The decoder that `FUZZ_DECODER` names, for cargo-fuzz: the very bodies that `cargo test` tries, led by coverage. Decides which
//! one it is, and nothing else.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

type Body = fn(&[u8]);

fn chosen() -> Body {
    let all = [
        billing_core::fuzz::BODIES,
        billing_proto::fuzz::BODIES,
        billing_store::fuzz::BODIES,
        billing_server::fuzz::BODIES,
        billing_gate::fuzz::BODIES,
        billing_sandbox::fuzz::BODIES,
        billingctl::fuzz::BODIES,
    ]
    .concat();
    let name = std::env::var("FUZZ_DECODER").unwrap_or_default();
    match all.iter().find(|(known, _)| *known == name) {
        Some((_, body)) => *body,
        None => {
            let names: Vec<&str> = all.iter().map(|(name, _)| *name).collect();
            panic!("FUZZ_DECODER is one of {}", names.join(", "))
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    static BODY: OnceLock<Body> = OnceLock::new();
    BODY.get_or_init(chosen)(bytes);
});
