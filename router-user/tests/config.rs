//! Whole configuration files: the good ones are understood, the broken ones are answered word for
//! word.

#![expect(clippy::unwrap_used, reason = "a test that cannot read its files fails")]

mod golden;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use router_user::config::{Config, TABLES};

fn directory(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config").join(name)
}

fn toml_files(name: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(directory(name))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    files.sort();
    files
}

/// The text of `path`, and the name that its messages should call it by.
fn read(path: &Path) -> (String, PathBuf) {
    (std::fs::read_to_string(path).unwrap(), PathBuf::from(path.file_name().unwrap()))
}

#[test]
fn broken_files_report_every_error() {
    let files = toml_files("broken");
    assert!(files.len() >= 25, "only {} broken files", files.len());
    for path in files {
        let (text, name) = read(&path);
        match Config::parse(&text, &name) {
            Ok(_) => panic!("{} is accepted", path.display()),
            Err(error) => golden::check(&path.with_extension("txt"), &error.to_string()),
        }
    }
}

#[test]
fn good_files_are_read() {
    for path in toml_files("good") {
        let (text, name) = read(&path);
        match Config::parse(&text, &name) {
            Ok(loaded) => {
                let mut shown = format!("{:#?}\n", loaded.config);
                for warning in &loaded.warnings {
                    shown.push_str(&format!("\n{warning}\n"));
                }
                golden::check(&path.with_extension("txt"), &shown);
            }
            Err(error) => panic!("{} is refused:\n{error}", path.display()),
        }
    }
}

/// The sample that is installed as the first configuration.
fn sample() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/config.toml")).unwrap()
}

/// In the sample, `#key = value` is a default, and `# text` is for people.
fn commented_default(line: &str) -> Option<&str> {
    line.strip_prefix('#').filter(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase()))
}

/// `# key = value` and `# [[table]]`: an example for people that is configuration all the same.
fn commented_example(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("# ")?;
    let key = rest.split(" = ").next().filter(|key| key.chars().all(|c| c.is_ascii_lowercase() || c == '_'));
    (rest.starts_with('[') || (rest.contains(" = ") && key.is_some())).then_some(rest)
}

#[test]
fn the_sample_is_good_and_has_no_warnings() {
    match Config::parse(&sample(), Path::new("deploy/config.toml")) {
        Ok(loaded) => assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn the_defaults_in_the_sample_are_the_real_ones() {
    let uncommented: Vec<String> =
        sample().lines().map(|line| commented_default(line).unwrap_or(line).to_owned()).collect();
    let name = Path::new("uncommented.toml");
    let with_defaults =
        Config::parse(&uncommented.join("\n"), name).map_err(|error| error.to_string()).unwrap();
    let as_shipped = Config::parse(&sample(), name).map_err(|error| error.to_string()).unwrap();
    assert_eq!(with_defaults.config, as_shipped.config);
}

#[test]
fn the_sample_has_every_key() {
    let mut seen = BTreeSet::new();
    let mut table = String::new();
    for line in sample().lines() {
        let line = commented_default(line).or_else(|| commented_example(line)).unwrap_or(line);
        if let Some(header) = line.strip_prefix('[') {
            table = header.trim_matches(['[', ']']).split(']').next().unwrap_or_default().to_owned();
        } else if let Some((key, _)) = line.split_once(" = ") {
            seen.insert((table.clone(), key.to_owned()));
        }
    }
    for schema in TABLES {
        for key in schema.keys {
            assert!(
                seen.contains(&(schema.name.to_owned(), (*key).to_owned())),
                "deploy/config.toml does not explain `{key}` of {}",
                schema.title()
            );
        }
    }
}

#[test]
fn the_examples_in_the_sample_are_good() {
    let text: Vec<String> =
        sample().lines().map(|line| commented_example(line).unwrap_or(line).to_owned()).collect();
    if let Err(error) = Config::parse(&text.join("\n"), Path::new("examples.toml")) {
        panic!("{error}");
    }
}

#[test]
fn there_may_be_512_rules_and_no_more() {
    let rules = |number: u32| {
        let rule = |rule: u32| {
            format!(
                "[[forward]]\nname = \"r{rule}\"\nprotocol = \"udp\"\nlisten = \"{}\"\n\
                 target = \"203.0.113.10\"\nsources = [\"10.0.2.64/26\"]\n",
                10_000 + rule
            )
        };
        let text: String = (0..number).map(rule).collect();
        Config::parse(&format!("interfaces.pls = \"eth0\"\n{text}"), Path::new("many.toml"))
    };
    assert_eq!(rules(512).map_err(|error| error.to_string()).unwrap().config.forwards.len(), 512);
    let error = rules(513).unwrap_err().to_string();
    assert!(error.starts_with("error: 513 rules are too many\n"), "{error}");
}

#[test]
fn a_warning_fits_a_line_of_the_log() {
    let text = "interfaces.pls = \"eth0\"\n[[masquerade]]\nname = \"m\"\nsources = [\"0.0.0.0/0\"]\n\
                destinations = [\"10.0.0.0/8\"]\n";
    let loaded = Config::parse(text, Path::new("config.toml")).map_err(|error| error.to_string()).unwrap();
    let brief: Vec<String> = loaded.warnings.iter().map(router_user::config::Diagnostic::brief).collect();
    assert_eq!(
        brief,
        [
            "config.toml:4:12: anyone who reaches this machine may use this rule; name the addresses that the Private \
          Link Service translates to, e.g. sources = [\"10.0.2.64/26\"]"
        ]
    );
}

#[test]
fn one_source_may_have_half_of_the_ports_half_open() {
    let parse = |text: &str| {
        let text = format!(
            "interfaces.pls = \"eth0\"\n{text}\n[[masquerade]]\nname = \"m\"\nsources = [\"10.0.2.0/24\"]\n\
             destinations = [\"10.0.0.0/8\"]\n"
        );
        Config::parse(&text, Path::new("config.toml")).map_err(|error| error.to_string()).unwrap().config
    };
    for (text, ports, expected) in [
        ("", 31_744, 15_872),
        ("[snat]\naddresses = [\"10.0.2.4\", \"10.0.2.5\"]", 31_744, 31_744),
        ("[limits]\nflows = 65536", 31_744, 8192),
        ("", 16, 64),
        ("[limits]\nhalf_open_per_source = 7", 31_744, 7),
    ] {
        assert_eq!(parse(text).half_open_per_source(ports), expected, "{text}");
    }
}
