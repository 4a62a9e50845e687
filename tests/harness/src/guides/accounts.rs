//! The runners of commands within sentences: each is run by a test, or is for Azure only.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use super::{Block, Page, Runner, Step};

/// The programs whose commands run on the router of a lab.
const LAB: &[&str] = &["curl", "ethtool", "ip", "pls-router"];

/// The programs whose commands run on a Debian 12 with systemd.
const MACHINE: &[&str] =
    &["apt", "apt-get", "dpkg", "journalctl", "ssh-keygen", "systemctl", "timedatectl", "usermod"];

/// The programs that nothing runs: they need Azure.
const AZURE: &[&str] = &["az", "terraform"];

/// Commands that a test of its own runs.
#[derive(Debug)]
pub struct Elsewhere {
    /// The command lines, as the pages have them.
    commands: &'static [&'static str],
    /// The file with the test, or with what is run by one.
    file: &'static str,
    /// Words that the file has: the name of the test, and the command as it is there.
    words: &'static [&'static str],
}

/// The commands that a test of its own runs, because they take long, or end what others need.
pub const ELSEWHERE: &[Elsewhere] = &[
    Elsewhere {
        commands: &["pls-router detach"],
        file: "tests/tests/net/layouts.rs",
        words: &["fn detach_removes_the_data_plane_of_any_version(", "lab.pls_router(&[\"detach\"])"],
    },
    Elsewhere {
        commands: &["pls-router detach --force"],
        file: "tests/tests/net/health.rs",
        words: &[
            "fn what_an_operator_does_and_a_lost_interface_count_at_once(",
            "&[\"detach\", \"--force\"]",
        ],
    },
    Elsewhere {
        commands: &["pls-router run --take-over"],
        file: "tests/tests/net/hand_over.rs",
        words: &["fn a_successor_takes_over_without_a_lost_packet(", "&[\"run\", \"--take-over\"]"],
    },
    Elsewhere {
        commands: &["pls-router import iptables-save"],
        file: "tests/tests/net/import.rs",
        words: &["fn rules_of_a_real_iptables_are_translated(", "[\"import\", \"iptables-save\"]"],
    },
    Elsewhere {
        commands: &["ethtool -L"],
        file: "tests/tests/net/follows.rs",
        words: &["fn another_number_of_channels_is_followed(", "run(\"ethtool\", &[\"-L\", \"eth0\""],
    },
    Elsewhere {
        commands: &["kill -9"],
        file: "tests/tests/machine/quick.rs",
        words: &["machine.ssh(&format!(\"kill -9 {before}\"))"],
    },
    Elsewhere {
        commands: &["man pls-router", "man pls-router-drain"],
        file: "xtask/tests/dist/package.rs",
        words: &["fn all_that_belongs_to_it(", "/man8/pls-router.8.gz", "/man8/pls-router-drain.8.gz"],
    },
    Elsewhere {
        commands: &["cargo xtask deploy"],
        file: "tests/tests/deploy.rs",
        words: &["fn a_first_install_forwards(", "check(self.target.deploy(&self.lab, args))"],
    },
    Elsewhere {
        commands: &["cargo xtask --help"],
        file: "xtask/tests/docs.rs",
        words: &["fn every_verb_and_option_in_the_guides_exists(", "\"--help\""],
    },
    Elsewhere {
        commands: &["cargo xtask lab", "cargo xtask lab --exec router pls-router counters"],
        file: "tests/tests/net/guides.rs",
        words: &[
            "fn the_lab_that_the_readme_names_can_be_entered(",
            "&[\"--exec\", \"router\", \"pls-router\", \"counters\"]",
        ],
    },
    Elsewhere {
        commands: &["cargo xtask lab --routers 3"],
        file: "tests/tests/net/fleet.rs",
        words: &["fn a_dead_vm_takes_exactly_its_own_connections_with_it(", "routers: 3"],
    },
    Elsewhere {
        commands: &["cargo xtask bench", "cargo xtask bench --only resources"],
        file: "tests/tests/net/guides.rs",
        words: &["fn the_bench_measures(", "\"--only\", \"programs\""],
    },
    Elsewhere {
        commands: &["cargo xtask soak"],
        file: "tests/tests/soak.rs",
        words: &["fn upgrades_restarts_and_crashes_lose_nothing(", "lifecycle::run("],
    },
    Elsewhere {
        commands: &["cargo xtask test", "cargo xtask test --only dist"],
        file: ".ci/run",
        words: &["exec cargo xtask test"],
    },
    Elsewhere {
        commands: &["cargo xtask dist"],
        file: "xtask/tests/dist/main.rs",
        words: &["CARGO_BIN_EXE_xtask", "[\"dist\", \"--version\""],
    },
    Elsewhere {
        commands: &["cargo xtask vm --machine", "cargo xtask vm --machine --full --package FILE"],
        file: "xtask/src/test.rs",
        words: &["fn machine(", "vm::machine::tests(&place, &package, options.full)"],
    },
    // What it does for each kernel; the table itself is made by hand.
    Elsewhere {
        commands: &["cargo xtask vm --kernels"],
        file: "xtask/src/test.rs",
        words: &["for kernel in vm::kernel::ALL", "vm::quick_run("],
    },
    Elsewhere {
        commands: &["cargo xtask vm --arm64 PROGRAM"],
        file: "xtask/src/dist/proof.rs",
        words: &["fn other_machine(", "[\"vm\", \"--arm64\"]"],
    },
];

/// The remedy for a command that nobody runs.
const REMEDY: &str = "Let a test run it, and name the test in `ELSEWHERE` of harness::guides::accounts (or the \
     program in a list there); or say \"Azure only\" before it; or, if it is no command, write it in words";

impl Elsewhere {
    /// Returns what is wrong with this entry.
    fn problem(&self, root: &Path, used: &BTreeSet<&str>) -> Option<String> {
        let text = match fs::read_to_string(root.join(self.file)) {
            Ok(text) => text,
            Err(error) => return Some(format!("{}: {error}", self.file)),
        };
        if let Some(words) = self.words.iter().find(|words| !text.contains(*words)) {
            return Some(format!("{} does not have `{words}`", self.file));
        }
        let stale = self.commands.iter().find(|command| !used.contains(*command))?;
        Some(format!("no page has the command {stale}"))
    }
}

/// Returns who runs a command within a sentence.
#[must_use]
pub fn runner(command: &str) -> Option<Runner> {
    runner_by(command, ELSEWHERE)
}

fn runner_by(command: &str, elsewhere: &[Elsewhere]) -> Option<Runner> {
    let mut words = command.split_whitespace().skip_while(|word| *word == "sudo");
    let program = words.next()?;
    if elsewhere.iter().any(|entry| entry.commands.contains(&command)) {
        Some(Runner::Elsewhere)
    } else if LAB.contains(&program) {
        Some(Runner::Lab)
    } else if MACHINE.contains(&program) {
        Some(Runner::Machine)
    } else if AZURE.contains(&program) {
        Some(Runner::Azure)
    } else {
        (program == "cargo" && words.next() == Some("xtask") && words.next() == Some("deploy"))
            .then_some(Runner::Deploy)
    }
}

/// Returns the commands within sentences that this one runs: each once, with its page, as a step
/// that has to succeed.
#[must_use]
pub fn inline(pages: &[Page], runs: Runner) -> Vec<(PathBuf, Step)> {
    let mut seen = BTreeSet::new();
    let mut steps = Vec::new();
    for page in pages {
        for inline in page.inline.iter().filter(|inline| !inline.azure) {
            if runner(&inline.command) == Some(runs) && seen.insert(&inline.command) {
                let step =
                    Step { line: inline.line, command: inline.command.clone(), code: 0, output: Vec::new() };
                steps.push((page.path.clone(), step));
            }
        }
    }
    steps
}

/// Returns the commands that nobody runs, with their places, and what is wrong with
/// [`ELSEWHERE`], whose files are in the directory `root`.
#[must_use]
pub fn problems(pages: &[Page], root: &Path) -> Vec<String> {
    problems_by(pages, root, ELSEWHERE)
}

fn problems_by(pages: &[Page], root: &Path, elsewhere: &[Elsewhere]) -> Vec<String> {
    let mut problems = Vec::new();
    let mut used = BTreeSet::new();
    for page in pages {
        let at = |line: usize| format!("{}:{line}", page.path.display());
        for inline in &page.inline {
            used.insert(inline.command.as_str());
            if !inline.azure && runner_by(&inline.command, elsewhere).is_none() {
                problems.push(format!("{}: nobody runs `{}`. {REMEDY}", at(inline.line), inline.command));
            }
        }
        for block in &page.blocks {
            let Block::Commands { runner: Runner::Elsewhere, commands } = block else { continue };
            for step in commands {
                let command = step.without_comment();
                used.insert(command);
                if !elsewhere.iter().any(|entry| entry.commands.contains(&command)) {
                    problems.push(format!("{}: nobody runs `{command}` elsewhere. {REMEDY}", at(step.line)));
                }
            }
        }
    }
    problems.extend(elsewhere.iter().filter_map(|entry| {
        let problem = entry.problem(root, &used)?;
        Some(format!("`ELSEWHERE`, {:?}: {problem}", entry.commands))
    }));
    problems
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    /// An entry about this file.
    const ENTRY: Elsewhere = Elsewhere {
        commands: &["fsck now"],
        file: "src/guides/accounts.rs",
        words: &["fn a_command_that_nobody_runs_is_named(", "fsck now"],
    };

    /// Words that are not in the file of [`ENTRY`] but here.
    const NOWHERE: &str = concat!("no", "where at all");

    fn problems_of(text: &str, elsewhere: &[Elsewhere]) -> Vec<String> {
        let page = parse(Path::new("a.md"), text).expect(text);
        problems_by(&[page], Path::new(env!("CARGO_MANIFEST_DIR")), elsewhere)
    }

    #[test]
    fn a_command_that_nobody_runs_is_named() {
        let all_run = "`pls-router status`, `sudo systemctl stop x`, `fsck now`, `az login now`\n";
        assert_eq!(problems_of(all_run, &[ENTRY]), [""; 0]);
        let found = problems_of("`fsck now`\n\n# More\n`rm -rf /`\n", &[ENTRY]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("a.md:4: nobody runs `rm -rf /`. Let a test run it"), "{found:?}");
        for azure in [
            "# A\n## B\nAzure only: `rm -rf /`\n",
            "# A\nAll commands are **Azure only**.\n## B\n`rm -rf /`\n",
        ] {
            assert_eq!(problems_of(azure, &[]), [""; 0], "{azure}");
        }
        for not_azure in [
            "# A\n\"Azure only\": `rm -rf /`\n",
            "# A\nAzure only: `az login now`\n## B\n`rm -rf /`\n",
            "`rm -rf /`\n\nAzure only:\n",
        ] {
            assert_eq!(problems_of(not_azure, &[]).len(), 1, "{not_azure}");
        }
        let found = problems_of("```console elsewhere\n$ fsck now  # soon\n$ fsck then\n```\n", &[ENTRY]);
        assert!(found.len() == 1 && found[0].starts_with("a.md:3: nobody runs `fsck then`"), "{found:?}");
    }

    #[test]
    fn an_entry_that_is_not_true_is_named() {
        for (entry, said) in [
            (Elsewhere { file: "src/nowhere.rs", ..ENTRY }, "src/nowhere.rs: "),
            (Elsewhere { words: &["fn a_command", NOWHERE], ..ENTRY }, "accounts.rs does not have `"),
            (
                Elsewhere { commands: &["fsck now", "fsck then"], ..ENTRY },
                "no page has the command fsck then",
            ),
        ] {
            let found = problems_of("`fsck now`\n", &[entry]);
            assert!(found.len() == 1 && found[0].contains(said), "{said}: {found:?}");
        }
    }

    #[test]
    fn each_command_runs_once() {
        let text = "`status -o json`, `pls-router status -o json`, `systemctl stop x`\n";
        let pages = [parse(Path::new("a.md"), text).expect(text)];
        let commands = |runs| {
            let steps = inline(&pages, runs).into_iter();
            steps.map(|(_, step)| step.command).collect::<Vec<_>>()
        };
        assert_eq!(commands(Runner::Lab), ["pls-router status -o json"]);
        assert_eq!(commands(Runner::Machine), ["systemctl stop x"]);
    }
}
