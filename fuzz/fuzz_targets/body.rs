#![no_main]
#![allow(dead_code, unreachable_pub, reason = "each target uses its own part of these")]

#[path = "../../src/wire/body.rs"]
pub mod body;
#[path = "../../src/wire/field.rs"]
pub mod field;
#[path = "../../src/wire/head.rs"]
pub mod head;
#[path = "../../tests/properties/mod.rs"]
mod properties;
#[path = "../../src/request_text.rs"]
mod request_text;
#[path = "../../src/wire/target.rs"]
pub mod target;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| properties::check_body(bytes));
