#![no_main]
#![allow(dead_code, unreachable_pub, reason = "each target uses its own part of these")]

#[path = "../../src/wire/body.rs"]
pub mod body;
#[path = "../../src/wire/field.rs"]
pub mod field;
#[path = "../../src/wire/head.rs"]
pub mod head;
#[path = "../../src/wire/head_fields.rs"]
pub mod head_fields;
#[path = "../../tests/properties/mod.rs"]
mod properties;
#[path = "../../src/wire/request_line.rs"]
pub mod request_line;
#[path = "../../src/request_text.rs"]
mod request_text;
#[path = "../../src/wire/target.rs"]
pub mod target;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| properties::check_body(bytes));
