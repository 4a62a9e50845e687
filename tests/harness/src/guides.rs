//! The commands of the guides (README.md and the pages of `docs`), for the tests that run them.
//!
//! A block of a page says in its first line who runs it:
//!
//! - `console run`: needs no root and no network, and is run in an empty directory
//!   (`router-user/tests/guides.rs`).
//! - `console lab`: is run on the router of a lab (`tests/tests/net/guides.rs`).
//! - `console deploy`: is run on a machine with three routers to deploy to, by
//!   `tests/tests/deploy.rs`, in the directory with the page's files.
//! - `console machine`: is run on a Debian 12 with systemd (`tests/tests/machine/guides.rs`).
//! - `console elsewhere`: is run by the test that [`ELSEWHERE`](accounts::ELSEWHERE) names.
//! - `console azure`: nothing runs it. The text before the block says "Azure only".
//! - `text file=NAME`, `toml file=NAME`: a file that the following blocks of the page find.
//!
//! In `console` blocks, lines that begin with `$ ` are commands, and the others show output: each
//! must come, in this order, with anything in the place of `...`. A command has to succeed, unless
//! a comment at its end says `# exit code 1`. Whoever runs a block, `pls-router` has to accept the
//! arguments that it has there.
//!
//! A command within a sentence is a span of code of two words or more that begins with the name of
//! a program. It is run as well, by whoever [`accounts`] says. No other block and no indented text
//! may have a command.

pub mod accounts;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};

/// Who runs a block.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Runner {
    /// Anybody.
    Run,
    /// A lab's router.
    Lab,
    /// A machine that deploys to routers.
    Deploy,
    /// A machine with systemd.
    Machine,
    /// A test of its own.
    Elsewhere,
    /// Nobody here.
    Azure,
}

/// Something that a page has for whoever follows it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Block {
    /// Commands.
    Commands {
        /// Who runs them.
        runner: Runner,
        /// The commands, in their order.
        commands: Vec<Step>,
    },
    /// A file.
    File {
        /// Its name.
        name: String,
        /// What it has.
        text: String,
    },
}

/// A command and what it shows.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Step {
    /// The line of the page, from 1.
    pub line: usize,
    /// The command line, for a shell.
    pub command: String,
    /// The exit code that it has.
    pub code: i32,
    /// Lines of its output.
    pub output: Vec<String>,
}

/// A page of the documentation.
#[derive(Clone, Debug)]
pub struct Page {
    /// Its path.
    pub path: PathBuf,
    /// Its blocks, in their order.
    pub blocks: Vec<Block>,
    /// The commands within its sentences, in their order.
    pub inline: Vec<Inline>,
}

/// A command within a sentence.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Inline {
    /// The line of the page, from 1.
    pub line: usize,
    /// The command line; a subcommand of `pls-router` has its program before it.
    pub command: String,
    /// `true` if the text of its section before it, or its page, says that it is for Azure only.
    pub azure: bool,
}

/// The outcome of a command.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Outcome {
    /// Its exit code; `None` if a signal has ended it.
    pub code: Option<i32>,
    /// Its output: standard output, then standard error.
    pub said: String,
}

impl From<Output> for Outcome {
    fn from(output: Output) -> Self {
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        Self { code: output.status.code(), said: said.concat() }
    }
}

/// The whole page is for Azure if the text before its first section says this.
const PAGE_FOR_AZURE: &str = "All commands are **Azure only**";

/// Subcommands of `pls-router`, which a sentence may name without the program.
const SUBCOMMANDS: &[&str] = &[
    "capacity",
    "check",
    "counters",
    "detach",
    "drain",
    "flows",
    "import",
    "reload",
    "rules",
    "run",
    "status",
    "support-bundle",
    "undrain",
];

/// Reads README.md and all pages of `docs` in this directory.
///
/// # Errors
/// Returns everything that is wrong with a page: each with its place.
pub fn pages(root: &Path) -> Result<Vec<Page>, Vec<String>> {
    let docs = root.join("docs");
    let entries = fs::read_dir(&docs).map_err(|error| vec![format!("{}: {error}", docs.display())])?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    paths.sort();
    paths.insert(0, root.join("README.md"));
    let (mut pages, mut wrong) = (Vec::new(), Vec::new());
    for path in paths {
        let name = path.strip_prefix(root).unwrap_or(&path);
        let read = fs::read_to_string(&path).map_err(|error| vec![format!(" {error}")]);
        match read.and_then(|text| parse(name, &text)) {
            Ok(page) => pages.push(page),
            Err(errors) => {
                wrong.extend(errors.into_iter().map(|error| format!("{}:{error}", name.display())));
            }
        }
    }
    if wrong.is_empty() { Ok(pages) } else { Err(wrong) }
}

/// Reads a page.
///
/// # Errors
/// Returns everything that is wrong with it: each with its line.
pub fn parse(path: &Path, text: &str) -> Result<Page, Vec<String>> {
    let mut page = Page { path: path.to_owned(), blocks: Vec::new(), inline: Vec::new() };
    let mut wrong = Vec::new();
    // What the text since the last heading says, and what the whole page does.
    let (mut section, mut whole_page, mut heading) = (false, false, 0);
    let mut lines = (1..).zip(text.lines());
    while let Some((number, line)) = lines.next() {
        let Some(first) = line.strip_prefix("```") else {
            if line.starts_with('#') {
                (section, heading) = (false, heading + 1);
            }
            // In quotes it is about the words.
            section |= line.replace("\"Azure only\"", "").contains("Azure only");
            whole_page |= heading < 2 && line.contains(PAGE_FOR_AZURE);
            let azure = section || whole_page;
            let spans = spans(line).filter_map(command);
            page.inline.extend(spans.map(|command| Inline { line: number, command, azure }));
            wrong.extend(hidden(line).into_iter().map(|error| format!("{number}: {error}: {}", line.trim())));
            continue;
        };
        let mut content = Vec::new();
        for (number, line) in lines.by_ref().take_while(|(_, line)| *line != "```") {
            content.push((number, line));
        }
        let words: Vec<&str> = first.split_whitespace().collect();
        match block(&words, &content, section) {
            Ok(Some(block)) => page.blocks.push(block),
            Ok(None) => wrong.extend(content.iter().filter_map(|(number, line)| {
                let is_command = line.trim_start().starts_with("$ ") || command(line).is_some();
                is_command.then(|| format!("{number}: {BLOCK_WITHOUT_RUNNER}: {line}"))
            })),
            Err(error) => wrong.push(format!("{number}: {error}")),
        }
    }
    if wrong.is_empty() { Ok(page) } else { Err(wrong) }
}

/// The error about a command in a block that does not say who runs it.
const BLOCK_WITHOUT_RUNNER: &str = "a command in a block that nobody runs: begin the block with \
     \"```console RUNNER\" and the line with \"$ \", or write it so that it is none";

/// Returns what is wrong with a line of text in which a command would not be seen.
fn hidden(line: &str) -> Option<&'static str> {
    let text = line.trim_start();
    if line.starts_with("    ") || line.starts_with('\t') {
        Some(
            "an indented block: nobody runs what it has. Write \"```console RUNNER\" for commands, and \
             \"```text\" or \"```toml\" for others",
        )
    } else if text.contains("``")
        || text.starts_with("~~~")
        || text.contains("<pre")
        || text.contains("<code")
    {
        Some(
            "code that is not seen: a block begins and ends with \"```\" at the start of a line, a span with \"`\"",
        )
    } else if line.matches('`').count() % 2 == 1 {
        Some("a span of code that does not end on its line")
    } else {
        None
    }
}

fn block(words: &[&str], content: &[(usize, &str)], says_azure: bool) -> Result<Option<Block>, &'static str> {
    let runner = match words {
        ["text" | "toml", file] if file.starts_with("file=") => {
            let name = file.trim_start_matches("file=").to_owned();
            let text = content.iter().map(|(_, line)| format!("{line}\n")).collect();
            return Ok(Some(Block::File { name, text }));
        }
        ["console" | "sh" | "bash" | "shell", rest @ ..] => match rest {
            ["run"] => Runner::Run,
            ["lab"] => Runner::Lab,
            ["deploy"] => Runner::Deploy,
            ["machine"] => Runner::Machine,
            ["elsewhere"] => Runner::Elsewhere,
            ["azure"] if says_azure => Runner::Azure,
            ["azure"] => return Err("the text before a block for Azure has to say \"Azure only\""),
            _ => {
                return Err("a block of commands has to say who runs it: `console run`, `console lab`, \
                     `console deploy`, `console machine`, `console elsewhere` or `console azure`");
            }
        },
        _ => return Ok(None),
    };
    let mut commands: Vec<Step> = Vec::new();
    for (line, text) in content {
        match (text.strip_prefix("$ "), commands.last_mut()) {
            (Some(command), _) => {
                let code = if command.ends_with("# exit code 1") { 1 } else { 0 };
                commands.push(Step { line: *line, command: command.to_owned(), code, output: Vec::new() });
            }
            // Goes on from the line before.
            (None, Some(step)) if step.output.is_empty() && step.command.ends_with('\\') => {
                step.command.push('\n');
                step.command.push_str(text);
            }
            (None, Some(step)) => step.output.push((*text).to_owned()),
            (None, None) => return Err("a block of commands begins with a command: \"$ ...\""),
        }
    }
    Ok(Some(Block::Commands { runner, commands }))
}

/// The code between single backquotes.
fn spans(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// Returns the command line that a code has, if it is one: the name of a program, and a second word
/// that is neither a sign (`name = "x"`) nor missing (a name alone is not a command).
fn command(code: &str) -> Option<String> {
    let is_assignment = |word: &str| {
        word.split_once('=').is_some_and(|(name, _)| name.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
    };
    let mut words = code.split_whitespace().skip_while(|word| *word == "sudo" || is_assignment(word));
    let (first, second) = (words.next()?, words.next()?);
    let is_name = first.starts_with(|c: char| c.is_ascii_lowercase() || ".~/".contains(c))
        && first.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._+-/~".contains(c));
    let is_argument = second.contains(|c: char| c.is_ascii_alphanumeric());
    let program = if SUBCOMMANDS.contains(&first) { "pls-router " } else { "" };
    (is_name && is_argument).then(|| format!("{program}{}", code.trim()))
}

impl Step {
    /// Has the command run, and compares what it did with what the page says. Returns what it said.
    ///
    /// # Errors
    /// Returns page, line and command, what is different, and all that the command said.
    pub fn follow(&self, page: &Path, run: impl FnOnce(&str) -> Outcome) -> Result<String, String> {
        let at = format!("{}:{}: {}", page.display(), self.line, self.command);
        let Outcome { code, said } = run(&self.command);
        println!("{at}\n{said}");
        if code != Some(self.code) {
            return Err(format!("{at}\nexit code {code:?} and not {}:\n{said}", self.code));
        }
        match self.missing(&said) {
            Some(line) => Err(format!("{at}\nno line \"{line}\" in:\n{said}")),
            None => Ok(said),
        }
    }

    /// The command without the comment at its end.
    #[must_use]
    pub fn without_comment(&self) -> &str {
        self.command.split(" #").next().unwrap_or_default().trim()
    }

    /// Returns the lines that should be in the output and are not there: the first of them.
    #[must_use]
    pub fn missing<'a>(&'a self, output: &str) -> Option<&'a str> {
        let mut lines = output.lines();
        self.output
            .iter()
            .map(String::as_str)
            .filter(|wanted| !wanted.trim().is_empty() && wanted.trim() != "...")
            .find(|wanted| !lines.any(|line| matches(line.trim_end(), wanted.trim_end())))
    }
}

/// Returns `true` if a line is as wanted, with anything in the place of `...`.
fn matches(line: &str, wanted: &str) -> bool {
    let mut parts = wanted.split("...");
    let Some(rest) = parts.next().and_then(|first| line.strip_prefix(first)) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    let mut rest = rest;
    for part in middle {
        let Some(place) = rest.find(part) else { return false };
        rest = rest.get(place + part.len()..).unwrap_or_default();
    }
    rest.ends_with(last)
}

/// Returns the calls of `pls-router` in a command line: the arguments of each, as a shell would
/// split them.
#[must_use]
pub fn calls(command: &str) -> Vec<Vec<String>> {
    let mut calls = Vec::new();
    let mut words: Vec<String> = Vec::new();
    let (mut word, mut is_open, mut quote) = (String::new(), false, None);
    let end_word = |word: &mut String, is_open: &mut bool, words: &mut Vec<String>| {
        if std::mem::take(is_open) {
            words.push(std::mem::take(word));
        }
    };
    let mut end_command = |words: &mut Vec<String>| {
        let words = std::mem::take(words);
        let mut words = words.into_iter().skip_while(|word| word == "sudo" || word == "exec");
        if words.next().is_some_and(|word| word == "pls-router" || word.ends_with("/pls-router")) {
            calls.push(words.collect());
        }
    };
    let mut characters = command.chars().peekable();
    while let Some(character) = characters.next() {
        match (character, quote) {
            (_, Some(mark)) if character == mark => quote = None,
            (_, Some(_)) => word.push(character),
            ('\'' | '"', None) => (quote, is_open) = (Some(character), true),
            ('\\', None) => {
                if let Some(next) = characters.next().filter(|next| *next != '\n') {
                    word.push(next);
                    is_open = true;
                }
            }
            ('#', None) if !is_open => break,
            ('>' | '<', None) => {
                // What a command writes to or reads from is no argument, and neither is the number
                // of the descriptor (`2>&1`).
                if word.chars().all(|c| c.is_ascii_digit()) {
                    (word, is_open) = (String::new(), false);
                }
                end_word(&mut word, &mut is_open, &mut words);
                while characters.next_if(|next| ">& ".contains(*next)).is_some() {}
                while characters.next_if(|next| !" |;&".contains(*next)).is_some() {}
            }
            ('|' | ';' | '&' | '(' | ')' | '\n', None) => {
                end_word(&mut word, &mut is_open, &mut words);
                end_command(&mut words);
            }
            (_, None) if character.is_whitespace() => end_word(&mut word, &mut is_open, &mut words),
            (_, None) => {
                word.push(character);
                is_open = true;
            }
        }
    }
    end_word(&mut word, &mut is_open, &mut words);
    end_command(&mut words);
    calls
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# A page\n\nAs `pls-router status` says, or `status`:\n\n\
        ```toml file=config.toml\nx = 1\n```\n```console run\n$ cat \\\n  config.toml\nx = ...\n$ false  # exit code 1\n```\n\
        Azure only:\n\n```console azure\n$ az vm list\n```\n\n```text\nanything\n```\n";

    #[test]
    fn pages_have_commands_and_files() {
        let page = parse(Path::new("a.md"), PAGE).expect("a page");
        let [
            Block::File { name, text },
            Block::Commands { runner: Runner::Run, commands },
            Block::Commands { runner: Runner::Azure, .. },
        ] = &page.blocks[..]
        else {
            panic!("{page:#?}")
        };
        assert_eq!((name.as_str(), text.as_str()), ("config.toml", "x = 1\n"));
        assert_eq!(commands[0].command, "cat \\\n  config.toml");
        assert_eq!((commands[0].code, commands[1].code), (0, 1));
        assert_eq!(commands[0].missing("x = 1\n"), None);
        assert_eq!(commands[0].missing("y = 1\n"), Some("x = ..."));
        let status = Inline { line: 3, command: "pls-router status".to_owned(), azure: false };
        assert_eq!(page.inline, [status]);
    }

    #[test]
    fn a_block_that_nobody_runs_is_an_error() {
        for text in [
            "```sh\nrm -rf /\n```\n",
            "```console\n$ true\n```\n",
            "```console azure\n$ az\n```\n",
            "Azure only\n# Another\n```console azure\n$ az\n```\n",
            "```console lab\ntrue\n```\n",
        ] {
            let errors = parse(Path::new("a.md"), text).expect_err(text);
            assert_eq!(errors.len(), 1, "{errors:?}");
        }
    }

    #[test]
    fn a_command_is_a_program_with_an_argument() {
        let commands = |line: &str| spans(line).filter_map(command).collect::<Vec<_>>();
        assert_eq!(
            commands("`sudo ip route`, `flows --limit 5`"),
            ["sudo ip route", "pls-router flows --limit 5"]
        );
        assert_eq!(
            commands("`LAB=1 ./run it`, `~/.cargo/bin/x -y`"),
            ["LAB=1 ./run it", "~/.cargo/bin/x -y"]
        );
        let names =
            "`status`, `mode = \"tcp\"`, `[[forward]] x`, `GET /status`, `{ a b }`, `snat.exhausted = \"x\"`";
        assert_eq!(commands(names), [""; 0]);
    }

    #[test]
    fn a_command_that_would_not_be_seen_is_an_error() {
        for (text, said) in [
            ("x\n\n    apt install x\n", "3: an indented block: "),
            ("x\n\n\tapt install x\n", "3: an indented block: "),
            ("x\n\n   ```console run\n", "3: code that is not seen: "),
            ("~~~\n", "1: code that is not seen: "),
            ("``apt install x``\n", "1: code that is not seen: "),
            ("`apt\n", "1: a span of code that does not end"),
            ("```text\nhello\napt install x\n```\n", "3: a command in a block that nobody runs: "),
            ("```\n$ apt\n```\n", "2: a command in a block that nobody runs: "),
        ] {
            let errors = parse(Path::new("a.md"), text).expect_err(text);
            assert!(errors.len() == 1 && errors[0].starts_with(said), "{text}: {errors:?}");
        }
        let fine = "```text\nA -> b\n  1 x 2 = 3\n```\n```toml\nname = \"x\"\n```\n";
        assert_eq!(parse(Path::new("a.md"), fine).map(|page| page.blocks.len()), Ok(0));
    }

    #[test]
    fn a_step_says_what_is_different() {
        let step = Step { line: 7, command: "x".to_owned(), code: 0, output: vec!["good ...".to_owned()] };
        let follow = |code, said: &str| {
            step.follow(Path::new("a.md"), |_| Outcome { code: Some(code), said: said.to_owned() })
        };
        assert_eq!(follow(0, "good day\n"), Ok("good day\n".to_owned()));
        let error = follow(2, "usage").expect_err("another exit code");
        assert!(error.contains("a.md:7: x\nexit code Some(2) and not 0:\nusage"), "{error}");
        let error = follow(0, "bad day").expect_err("another output");
        assert!(error.contains("no line \"good ...\" in:\nbad day"), "{error}");
    }

    #[test]
    fn output_may_leave_things_open() {
        assert!(matches("probe 200 for 3s (since x)", "probe ... for ... (since ...)"));
        assert!(matches("abc", "abc") && matches("abc", "a...") && matches("abc", "...c"));
        assert!(!matches("abc", "ab") && !matches("abc", "b...") && !matches("ab", "ab...b"));
    }

    #[test]
    fn calls_are_found_in_command_lines() {
        let one = |command: &str| calls(command).into_iter().map(|call| call.join(" ")).collect::<Vec<_>>();
        assert_eq!(
            one("sudo iptables-save | pls-router import iptables-save > x.toml"),
            ["import iptables-save"]
        );
        assert_eq!(
            one("pls-router status >/dev/null || pls-router check -o json 2>&1"),
            ["status", "check -o json"]
        );
        assert_eq!(one("pls-router drain --wait 10m  # exit code 1"), ["drain --wait 10m"]);
        assert_eq!(one("pls-router flows --rule 'a b' \\\n --limit 1"), ["flows --rule a b --limit 1"]);
        assert_eq!(one("systemctl stop pls-router && sudo pls-router detach"), ["detach"]);
    }
}
