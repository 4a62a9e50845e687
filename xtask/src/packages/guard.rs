//! Keeps the services of packages from being started while these are installed.

use std::path::Path;
use std::process::{Command, Stdio};

/// The content of `policy-rc.d` while packages are being installed. Debian asks it whether a
/// service may start; 101 means no.
const POLICY: &str = "#!/bin/sh\n# Left by `cargo xtask`, which is installing packages. Delete it if no apt-get is running.\nexit 101\n";

/// Runs `$2...` with `$1` in place as policy-rc.d, and removes it in every case.
///
/// A shell does this, because it can clean up when Ctrl-C ends the whole group of processes. A file
/// that already exists is the operator's and stays, unless an earlier run of ours was killed and
/// left it.
const GUARD: &str = r#"
policy=$1; text=$2; shift 2
if [ -f "$policy" ] && [ "$(cat "$policy"; echo x)" = "${text}x" ]; then rm -f "$policy"; fi
if (set -C; printf %s "$text" >"$policy") 2>/dev/null; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 130' INT TERM HUP
    chmod 755 "$policy"
else
    echo "  $policy exists and stays as it is: it decides which services may start"
fi
"$@"
"#;

/// Debian's place for it.
pub(super) const POLICY_FILE: &str = "/usr/sbin/policy-rc.d";

/// The command, with no service allowed to start as long as it runs.
pub(super) fn guarded(policy: &Path, command: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", GUARD, "sh"]).arg(policy).arg(POLICY);
    shell.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            shell.env(name, value);
        }
    }
    shell.stdin(Stdio::null());
    shell
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    fn policy_file(test: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("xtask-policy-{test}-{}", std::process::id()));
        _ = fs::remove_file(&path);
        path
    }

    /// Runs `script` under the guard; returns whether it succeeded and what it wrote.
    fn under_guard(policy: &Path, script: &str) -> (bool, String) {
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh"]).arg(policy);
        let output = guarded(policy, &command).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    #[test]
    fn services_are_denied_while_installing_and_only_then() {
        let policy = policy_file("denied");
        let (success, output) = under_guard(&policy, "\"$1\"; echo $?");
        assert!(success);
        assert_eq!(output, "101\n");
        assert!(!policy.exists());
    }

    #[test]
    fn the_policy_goes_away_when_the_install_fails_or_is_interrupted() {
        let policy = policy_file("fails");
        assert!(!under_guard(&policy, "exit 100").0);
        assert!(!policy.exists());
        assert!(!under_guard(&policy, "kill -TERM $PPID; sleep 1").0);
        assert!(!policy.exists());
    }

    #[test]
    fn an_operators_own_policy_stays() {
        let policy = policy_file("own");
        fs::write(&policy, "#!/bin/sh\nexit 0\n").unwrap();
        assert!(under_guard(&policy, "true").0);
        assert_eq!(fs::read_to_string(&policy).unwrap(), "#!/bin/sh\nexit 0\n");
        fs::remove_file(&policy).unwrap();
    }

    #[test]
    fn what_a_killed_run_left_is_taken_away() {
        let policy = policy_file("left");
        fs::write(&policy, POLICY).unwrap();
        assert!(under_guard(&policy, "true").0);
        assert!(!policy.exists());
    }
}
