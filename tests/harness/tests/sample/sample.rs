//! Tests that end in every way there is, for `outcomes.rs`.

#[macro_use]
extern crate harness;

use std::process::ExitCode;

use harness::packages::Absent;

fn main() -> ExitCode {
    harness::main(std::env::var("SAMPLE_OBSTACLE").ok().as_deref())
}

#[test]
fn passes() {
    println!("only on request");
}

#[test]
fn fails() {
    println!("said before it failed");
    assert_eq!(1 + 1, 3);
}

#[test]
fn aborts() {
    std::process::abort();
}

#[test]
fn is_skipped() {
    harness::skip("the moon is down");
}

#[test]
#[ignore = "takes too long"]
fn waits() {}

mod inner {
    #[test]
    fn returns_an_error() -> Result<(), String> {
        Err("an error as a value".to_owned())
    }
}

#[test]
fn misses_a_package() {
    let package = harness::packages::with_program("dig").expect("it is in the table");
    let missing: anyhow::Result<()> = Err(anyhow::Error::from(Absent(package)).context("no names"));
    harness::check(missing);
}

#[test]
fn has_an_error() {
    let error: anyhow::Result<()> = Err(anyhow::anyhow!("the cause").context("the effect"));
    harness::check(error);
}
