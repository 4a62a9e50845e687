//! The harness reports each outcome of a test correctly.

use std::process::{Command, Output};

fn sample(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_harness-sample"));
    command.args(arguments);
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The line of a test, without the spaces that align it.
fn line(said: &str, test: &str) -> String {
    let line = said.lines().find(|line| line.starts_with(&format!("test {test} ")));
    line.unwrap_or_else(|| panic!("no line of {test} in:\n{said}"))
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn every_test_is_what_it_is() {
    let output = sample(&[]).output().unwrap();
    let said = said(&output);
    assert_eq!(line(&said, "passes"), "test passes ... ok");
    for failed in ["fails", "aborts", "has_an_error", "inner::returns_an_error"] {
        assert_eq!(line(&said, failed), format!("test {failed} ... FAILED"));
    }
    assert_eq!(line(&said, "is_skipped"), "test is_skipped ... ignored (the moon is down)");
    assert_eq!(line(&said, "waits"), "test waits ... ignored (takes too long)");
    assert!(
        line(&said, "misses_a_package")
            .contains("ignored (there is no dig here: Debian's package bind9-dnsutils has it")
    );
    assert!(
        said.contains("test result: FAILED. 1 passed; 4 failed; 3 ignored; 0 measured; 0 filtered out;"),
        "{said}"
    );
    assert_eq!(output.status.code(), Some(101));
}

#[test]
fn what_a_failed_test_said_is_shown_and_nothing_else() {
    let said = said(&sample(&[]).output().unwrap());
    for shown in [
        "said before it failed",
        "thread 'fails'",
        "sample.rs",
        "an error as a value",
        "the effect: the cause",
        "SIGABRT",
    ] {
        assert!(said.contains(shown), "nothing about {shown} in:\n{said}");
    }
    assert!(!said.contains("only on request"), "{said}");
    let output = sample(&["--nocapture", "passes"]).output().unwrap();
    assert!(self::said(&output).contains("only on request"));
}

#[test]
fn filters_choose() {
    let ran = |arguments: &[&str]| said(&sample(arguments).output().unwrap());
    assert!(ran(&["inner::"]).contains("0 passed; 1 failed; 0 ignored; 0 measured; 7 filtered out"));
    assert!(ran(&["--exact", "passes"]).contains("1 passed; 0 failed; 0 ignored"));
    assert!(ran(&["--ignored"]).contains("1 passed; 0 failed; 0 ignored; 0 measured; 7 filtered out"));
    assert!(
        ran(&["--include-ignored", "s", "--skip", "_", "--test-threads", "1"])
            .contains("2 passed; 2 failed; 0 ignored")
    );
    assert!(ran(&["--list"]).contains("inner::returns_an_error: test\n"));
}

#[test]
fn an_obstacle_ignores_all_tests() {
    let output = sample(&[]).env("SAMPLE_OBSTACLE", "this is no moon").output().unwrap();
    let said = said(&output);
    assert_eq!(line(&said, "fails"), "test fails ... ignored (this is no moon)");
    assert!(said.contains("test result: ok. 0 passed; 0 failed; 8 ignored;"), "{said}");
    assert!(output.status.success());
}
