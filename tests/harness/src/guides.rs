//! The commands of the guides in `docs`, for the tests that run them.
//!
//! A block of a page says in its first line who runs it:
//!
//! - `console run`: needs no root and no network, and is run in an empty directory
//!   (`router-user/tests/guides.rs`).
//! - `console lab`: is run on the router of a lab (`tests/tests/net/guides.rs`).
//! - `console deploy`: is run on a machine with three routers to deploy to, by
//!   `tests/tests/deploy.rs`, in the directory with the page's files.
//! - `console azure`: nothing runs it. The text before the block says "Azure only".
//! - `text file=NAME`, `toml file=NAME`: a file that the following blocks of the page find.
//!
//! In `console` blocks, lines that begin with `$ ` are commands, and the others show output: each
//! must come, in this order, with anything in the place of `...`. A command has to succeed, unless
//! a comment at its end says `# exit code 1`. Whoever runs a block, `pls-router` has to accept the
//! arguments that it has there.

use std::{
    fs,
    path::{Path, PathBuf},
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
    /// Command lines within sentences that begin with `pls-router `, with their lines.
    pub inline: Vec<(usize, String)>,
}

/// Reads all pages of a directory.
///
/// # Errors
/// Returns everything that is wrong with a block: each with its place.
pub fn pages(directory: &Path) -> Result<Vec<Page>, Vec<String>> {
    let entries =
        fs::read_dir(directory).map_err(|error| vec![format!("{}: {error}", directory.display())])?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    paths.sort();
    let (mut pages, mut wrong) = (Vec::new(), Vec::new());
    for path in paths {
        let read = fs::read_to_string(&path).map_err(|error| vec![error.to_string()]);
        match read.and_then(|text| parse(&path, &text)) {
            Ok(page) => pages.push(page),
            Err(errors) => {
                wrong.extend(errors.into_iter().map(|error| format!("{}:{error}", path.display())));
            }
        }
    }
    if wrong.is_empty() { Ok(pages) } else { Err(wrong) }
}

/// Reads a page.
///
/// # Errors
/// Returns everything that is wrong with a block: each with its line.
pub fn parse(path: &Path, text: &str) -> Result<Page, Vec<String>> {
    let mut page = Page { path: path.to_owned(), blocks: Vec::new(), inline: Vec::new() };
    let mut wrong = Vec::new();
    let mut before = Vec::new();
    let mut lines = (1..).zip(text.lines());
    while let Some((number, line)) = lines.next() {
        let Some(first) = line.strip_prefix("```") else {
            page.inline.extend(spans(line).map(|span| (number, span)));
            before.push(line);
            continue;
        };
        let mut content = Vec::new();
        for (number, line) in lines.by_ref().take_while(|(_, line)| *line != "```") {
            content.push((number, line));
        }
        let words: Vec<&str> = first.split_whitespace().collect();
        let said = before
            .iter()
            .rev()
            .take_while(|line| !line.starts_with('#'))
            .any(|line| line.contains("Azure only"));
        match block(&words, &content, said) {
            Ok(block) => page.blocks.extend(block),
            Err(error) => wrong.push(format!("{number}: {error}")),
        }
    }
    if wrong.is_empty() { Ok(page) } else { Err(wrong) }
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
            ["azure"] if says_azure => Runner::Azure,
            ["azure"] => return Err("the text before a block for Azure has to say \"Azure only\""),
            _ => {
                return Err("a block of commands has to say who runs it: `console run`, `console lab`, \
                     `console deploy` or `console azure`");
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

/// The command lines of the program between single backquotes.
fn spans(line: &str) -> impl Iterator<Item = String> {
    let spans = line.split('`').skip(1).step_by(2);
    spans.filter(|span| span.starts_with("pls-router ")).map(str::to_owned)
}

impl Step {
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
        assert_eq!(page.inline, [(3, "pls-router status".to_owned())]);
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
