//! The pages of `docs` with tables say what they must, and name tests that exist and run.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use harness::guides::{self, Block};

/// The requirements of every RFC, in its order: those of the first three, the sections of the next
/// one, which updates them, and of the others the sections about undeliverable packets.
const REQUIREMENTS: &[(&str, &str)] = &[
    (
        "RFC 4787",
        "REQ-1 REQ-2 REQ-3 REQ-3a REQ-4 REQ-5 REQ-5a REQ-5b REQ-5c REQ-6 REQ-6a REQ-7 REQ-8 REQ-8a REQ-9 REQ-9a REQ-10 REQ-10a \
         REQ-11 REQ-12 REQ-12a REQ-12b REQ-13 REQ-13a REQ-14 REQ-14a",
    ),
    (
        "RFC 5382",
        "REQ-1 REQ-2 REQ-2a REQ-3 REQ-3a REQ-3b REQ-4 REQ-4a REQ-5 REQ-5a REQ-6 REQ-7 REQ-8 REQ-8a REQ-9 REQ-10",
    ),
    (
        "RFC 5508",
        "REQ-1 REQ-1a REQ-2 REQ-2a REQ-3 REQ-3a REQ-3b REQ-3c REQ-3d REQ-4 REQ-4a REQ-4b REQ-4c REQ-5 REQ-5a REQ-5b REQ-5c REQ-6 \
         REQ-7 REQ-7a REQ-8 REQ-9 REQ-10a REQ-10b REQ-10c REQ-10d REQ-10e REQ-10f REQ-11",
    ),
    ("RFC 7857", "2 2.1 2.2 3 4 5 6 7 7.1 8 9 10 11 12"),
    ("RFC 1812", "4.3.2.4 4.3.2.5 4.3.2.7 4.3.2.8 4.3.3.1 5.2.7.1"),
    ("RFC 9293", "3.10.7.1"),
    ("RFC 1122", "3.2.2.1"),
];

/// The states of a requirement, each with `true` if a test has to show it.
const RFC_STATUS: &[(&str, bool)] = &[("met", true), ("partly", true), ("not", false), ("n/a", false)];
/// The status of one of VPP's cases: the same here, different here, or impossible here.
const VPP_STATUS: &[(&str, bool)] = &[("same", true), ("differs", true), ("n/a", false)];
/// The number of VPP's cases that are listed, by the table's heading.
const VPP_CASES: &[(&str, usize)] = &[("test_nat44_ed.py", 50), ("More", 15)];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A row of a table.
#[derive(Debug)]
struct Row {
    about: String,
    status: String,
    why: String,
    /// Each as `path/of/file.rs::name`.
    tests: Vec<String>,
}

/// The rows of the table below each heading of the second level, by that heading up to a colon.
fn tables(text: &str) -> BTreeMap<String, Vec<Row>> {
    let mut tables: BTreeMap<String, Vec<Row>> = BTreeMap::new();
    let mut heading = "";
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if let Some(title) = line.strip_prefix("## ") {
            heading = title.split(':').next().unwrap_or(title);
        }
        let names_columns = lines.peek().is_some_and(|next| next.starts_with("|---"));
        if !line.starts_with('|') || line.starts_with("|---") || names_columns {
            continue;
        }
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [about, asks, status, why, tests] = cells[..] else { panic!("not five cells: {line}") };
        assert!(!asks.is_empty(), "an empty cell: {line}");
        tables.entry(heading.to_owned()).or_default().push(Row {
            about: about.trim_matches('`').to_owned(),
            status: status.to_owned(),
            why: why.to_owned(),
            tests: tests.split('`').skip(1).step_by(2).map(str::to_owned).collect(),
        });
    }
    tables
}

/// Returns the errors of a row.
fn problems(row: &Row, allowed: &[(&str, bool)], sources: &mut Sources) -> Vec<String> {
    let mut problems = Vec::new();
    match allowed.iter().find(|(word, _)| *word == row.status) {
        None => problems.push(format!("\"{}\" is no status", row.status)),
        Some((_, true)) if row.tests.is_empty() => problems.push("no test shows it".to_owned()),
        Some(_) => {}
    }
    if !row.why.ends_with('.') {
        problems.push(format!("no sentence says why: \"{}\"", row.why));
    }
    problems.extend(row.tests.iter().filter_map(|test| {
        let problem = sources.find(test).err()?;
        Some(format!("{test}: {problem}"))
    }));
    problems.into_iter().map(|problem| format!("{}: {problem}", row.about)).collect()
}

/// The tests of the files that have been looked at, by file.
#[derive(Default)]
struct Sources(BTreeMap<String, BTreeSet<String>>);

impl Sources {
    /// Looks for a test.
    fn find(&mut self, test: &str) -> Result<(), String> {
        let (file, name) = test.split_once("::").ok_or("not file::test")?;
        if !self.0.contains_key(file) {
            let text = fs::read_to_string(root().join(file)).map_err(|error| error.to_string())?;
            self.0.insert(file.to_owned(), tests_of(file, &text));
        }
        if self.0[file].contains(name) { Ok(()) } else { Err("no such test, or it is ignored".to_owned()) }
    }
}

/// The names of the tests in a file that run: those with the attribute, and those that a macro
/// makes tests of.
fn tests_of(file: &str, text: &str) -> BTreeSet<String> {
    let mut tests = BTreeSet::new();
    let (mut is_test, mut is_ignored) = (false, false);
    for line in text.lines().map(str::trim) {
        if line == "#[test]" || line.starts_with("#[tokio::test") {
            is_test = true;
        } else if line.starts_with("#[ignore") {
            is_ignored = true;
        } else if let Some(name) = function(line) {
            if is_test && !is_ignored {
                tests.insert(name.to_owned());
            }
            (is_test, is_ignored) = (false, false);
        }
    }
    // `lab_tests! { any: [one, two], pls_router: [three] }`, in the namespace tests.
    if let Some((_, list)) = text.split_once("lab_tests! {") {
        let list = list.split_once("\n}").map_or(list, |(list, _)| list);
        let words = list.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        tests.extend(words.filter(|word| text.contains(&format!("\nfn {word}("))).map(str::to_owned));
    }
    // `One subject::name;` or `Two subject::name after change;`, in the table of the client tests.
    if let Some(subject) = file.strip_prefix("tests/src/clients/") {
        let subject = format!(" {}::", subject.trim_end_matches(".rs"));
        let matrix = read("tests/tests/clients/main.rs");
        let rows = matrix.lines().filter_map(|line| line.split_once(&subject));
        let runs = rows.filter(|(_, rest)| !rest.contains(" ignored "));
        let names = runs.filter_map(|(_, rest)| rest.strip_suffix(';')?.split(' ').next());
        tests.extend(names.map(str::to_owned));
    }
    tests
}

/// The name of the function that a line begins.
fn function(line: &str) -> Option<&str> {
    let signature = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ")?;
    signature.split_once('(').map(|(name, _)| name)
}

#[test]
fn every_requirement_has_its_row_and_every_test_it_names_exists() {
    let tables = tables(&read("docs/rfc-compliance.md"));
    let mut sources = Sources::default();
    let mut found = Vec::new();
    for (rfc, requirements) in REQUIREMENTS {
        let rows = tables.get(*rfc).unwrap_or_else(|| panic!("no table of {rfc}"));
        let listed: Vec<&str> = rows.iter().map(|row| &*row.about).collect();
        assert_eq!(listed, requirements.split_whitespace().collect::<Vec<_>>(), "{rfc}");
        for row in rows {
            found.extend(
                problems(row, RFC_STATUS, &mut sources).iter().map(|problem| format!("{rfc} {problem}")),
            );
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn every_case_of_vpp_has_its_row_and_every_test_it_names_exists() {
    let tables = tables(&read("docs/vpp-cases.md"));
    let mut names = BTreeSet::new();
    let mut sources = Sources::default();
    let mut found = Vec::new();
    for (heading, count) in VPP_CASES {
        let rows = tables.get(*heading).unwrap_or_else(|| panic!("no table of {heading}"));
        assert_eq!(rows.len(), *count, "{heading}");
        for row in rows {
            assert!(names.insert(&row.about), "{} is listed twice", row.about);
            found.extend(problems(row, VPP_STATUS, &mut sources));
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

/// Makes sure that every row of a page has all of its cells, and names tests that exist. The
/// columns have names of their own there.
fn assert_rows_are_whole(page: &str, headings: &[&str]) {
    let tables = tables(&read(page));
    let found: BTreeSet<&str> = tables.keys().map(String::as_str).collect();
    assert_eq!(found, headings.iter().copied().collect(), "{page}");
    let mut sources = Sources::default();
    let mut found = Vec::new();
    for row in tables.values().flatten() {
        if row.status.is_empty() || row.why.is_empty() || row.tests.is_empty() {
            found.push(format!("{}: an empty cell", row.about));
        }
        let missing =
            row.tests.iter().filter_map(|test| Some(format!("{test}: {}", sources.find(test).err()?)));
        found.extend(missing);
    }
    assert!(found.is_empty(), "{page}: {found:#?}");
}

#[test]
fn every_share_has_a_bound_and_a_test() {
    assert_rows_are_whole(
        "docs/fair-shares.md",
        &["Answers that the router sends", "Fragments", "Packets for the daemon", "Sessions"],
    );
}

#[test]
fn every_change_that_is_followed_has_a_test() {
    assert_rows_are_whole("docs/following.md", &["Changes"]);
}

#[test]
fn every_threat_has_a_bound_and_a_test() {
    assert_rows_are_whole(
        "docs/security.md",
        &[
            "Clients of the Private Link Service",
            "Local users of this machine",
            "Name servers, or attackers who answer in their name",
            "Off-path attackers, on either side",
            "The firewall's side",
        ],
    );
}

/// What `cargo xtask` with these arguments and `--help` says.
fn help(arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    let output = command.args(arguments).arg("--help").output().expect("xtask runs");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Verbs whose help is that of a program which they compile first.
const OWN_HELP: &[&str] = &["bench", "lab", "soak"];

/// Returns the verb, or the option, in a command line that `cargo xtask` does not have.
fn unknown_to_xtask(command: &str) -> Option<&str> {
    let command = command.split(" #").next().unwrap_or_default();
    let arguments: Vec<&str> = command.trim().strip_prefix("cargo xtask ")?.split_whitespace().collect();
    let verbs = help(&[]);
    let is_verb = |word: &str| verbs.lines().any(|line| line.split_whitespace().next() == Some(word));
    let verb = arguments.first().copied().filter(|verb| *verb != "--help")?;
    if !is_verb(verb) {
        return Some(verb);
    }
    let options = if OWN_HELP.contains(&verb) { return None } else { help(&[verb]) };
    arguments.into_iter().find(|word| word.starts_with("--") && !options.contains(word))
}

#[test]
fn every_verb_and_option_in_the_guides_exists() {
    let pages = guides::pages(&root()).unwrap_or_else(|wrong| panic!("{}", wrong.join("\n")));
    let (mut wrong, mut looked_at) = (Vec::new(), 0);
    for page in &pages {
        let in_blocks = page.blocks.iter().flat_map(|block| match block {
            Block::Commands { commands, .. } => commands.as_slice(),
            Block::File { .. } => &[],
        });
        let in_blocks = in_blocks.map(|step| (step.line, &step.command));
        let inline = page.inline.iter().map(|inline| (inline.line, &inline.command));
        for (line, command) in
            in_blocks.chain(inline).filter(|(_, command)| command.starts_with("cargo xtask "))
        {
            looked_at += 1;
            let unknown = unknown_to_xtask(command);
            wrong.extend(unknown.map(|word| format!("{}:{line}: no {word}: {command}", page.path.display())));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(looked_at > 20, "only {looked_at} commands");
    assert_eq!(unknown_to_xtask("cargo xtask dploy HOST"), Some("dploy"));
    assert_eq!(unknown_to_xtask("cargo xtask deploy HOST --dryrun"), Some("--dryrun"));
}

/// `#[tokio::test]` makes a test of the compiler's harness, which these binaries do not have: it
/// would never run.
#[test]
fn the_projects_own_harness_finds_all_tests() {
    let mut folders =
        ["router-user/tests/datapath", "router-user/tests/bpf_fuzz", "tests/tests", "xtask/tests/setup"]
            .map(|folder| root().join(folder))
            .to_vec();
    let mut looked_at = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                assert!(!text.contains("::test]") && !text.contains("::test("), "{}", path.display());
                looked_at += 1;
            }
        }
    }
    assert!(looked_at > 30, "only {looked_at} files");
}

#[test]
fn only_tests_that_run_count() {
    let text = "#[test]\nfn runs() {}\nfn helper() {}\n#[test]\n#[ignore = \"why\"]\nfn waits() {}\n\
                #[tokio::test]\nasync fn runs_too() {}\nproptest! {\n    #[test]\n    fn holds(x in 0..1) {}\n}\n\
                lab_tests! {\n    any: [in_a_lab],\n    pls_router: [],\n}\nfn in_a_lab(lab: &mut Lab) {}\n";
    let tests = tests_of("a.rs", text);
    assert_eq!(
        tests.iter().map(String::as_str).collect::<Vec<_>>(),
        ["holds", "in_a_lab", "runs", "runs_too"]
    );
}
