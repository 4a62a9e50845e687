//! The width of prose: comments and pages have at most 100 columns. rustfmt checks code only.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result};

use super::report::{self, Outcome, Report};
use crate::workspace;

const WIDTH: usize = 100;

/// Looks at all files of the repository, as a step of this name.
pub(super) fn run(report: &mut Report, name: &str) {
    report::title(name);
    let start = Instant::now();
    let outcome = match wide_lines(&workspace::root()) {
        Ok(found) if found.is_empty() => Outcome::passed(),
        Ok(found) => {
            let mut outcome = Outcome::failed(format!("wider than {WIDTH} columns:"));
            outcome.notes.extend(found);
            outcome
        }
        Err(error) => Outcome::failed(format!("{error:#}")),
    };
    report.add(name, start.elapsed(), outcome);
}

/// The lines below a directory that are too wide, each as `file:line`.
fn wide_lines(root: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for path in files(root)? {
        let shown = path.strip_prefix(root).unwrap_or(&path).display();
        // A file that is not text has no comments.
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let Some(kind) = Kind::of(&path, &text) else { continue };
        found.extend(kind.wide_lines(&text).into_iter().map(|line| format!("{shown}:{line}")));
    }
    found.sort();
    Ok(found)
}

/// All files below a directory, but for what cargo builds and what is hidden.
fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        let entries =
            fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot read {}", directory.display()))?;
            let path = entry.path();
            let hidden = entry.file_name().to_string_lossy().starts_with('.');
            let kind = entry.file_type().with_context(|| format!("cannot look at {}", path.display()))?;
            if kind.is_file() {
                files.push(path);
            } else if kind.is_dir() && !hidden && !path.join("CACHEDIR.TAG").exists() {
                directories.push(path);
            }
        }
    }
    Ok(files)
}

/// The kind of a file, by which prose is told from the rest.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Rust,
    Markdown,
    /// Scripts and settings, in which comments begin with `#`.
    Hash,
}

impl Kind {
    fn of(path: &Path, text: &str) -> Option<Self> {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("rs") => Some(Self::Rust),
            Some("md") => Some(Self::Markdown),
            Some("toml" | "sh" | "service" | "yml" | "yaml" | "py" | "tf" | "hcl" | "rules" | "tftpl") => {
                Some(Self::Hash)
            }
            None if text.starts_with("#!") => Some(Self::Hash),
            _ => None,
        }
    }

    /// The numbers of the lines whose prose is too wide.
    fn wide_lines(self, text: &str) -> Vec<usize> {
        let mut found = Vec::new();
        let mut in_code_block = false;
        for (line, number) in text.lines().zip(1..) {
            let Some(prose) = self.prose(line) else {
                // Code ends a comment, and with it what the comment has; a page goes on.
                in_code_block &= matches!(self, Self::Markdown);
                continue;
            };
            if prose.starts_with("```") {
                in_code_block = !in_code_block;
            }
            // A single word cannot be wrapped, and a link does not count.
            let can_be_wrapped = prose.contains(' ');
            let links: usize = prose.split(' ').filter(|word| word.contains("://")).map(width).sum();
            if width(line) - links > WIDTH && can_be_wrapped && !in_code_block {
                found.push(number);
            }
        }
        found
    }

    /// Returns the prose of a line, trimmed. A comment may have Markdown in it.
    fn prose(self, line: &str) -> Option<&str> {
        match self {
            Self::Rust => {
                let comment = line.trim_start().strip_prefix("//").or_else(|| comment_after_code(line))?;
                Some(comment.trim_start_matches(['/', '!']).trim())
            }
            // An indented line is code, and one that begins with a bar is a row of a table.
            Self::Markdown if line.starts_with("    ") || line.starts_with('|') => None,
            Self::Markdown => Some(line.trim().trim_start_matches("- ")),
            Self::Hash => {
                let comment = line.trim_start().strip_prefix('#')?.trim();
                // A setting as an example: `key = "value"`.
                let is_setting = comment.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '));
                (!is_setting).then_some(comment)
            }
        }
    }
}

fn width(text: &str) -> usize {
    text.chars().count()
}

/// Returns the comment at the end of a line of code. One inside a string is told by the quotes
/// before it.
fn comment_after_code(line: &str) -> Option<&str> {
    let (code, comment) = line.split_once(" // ")?;
    let quotes = code.matches('"').count() - code.matches("\\\"").count();
    quotes.is_multiple_of(2).then_some(comment)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// More than fits beside anything.
    fn wide() -> String {
        "word ".repeat(25)
    }

    fn found(kind: Kind, text: &str) -> Vec<usize> {
        kind.wide_lines(text)
    }

    #[test]
    fn wide_comments_are_found_in_items_macros_and_behind_code() {
        let wide = wide();
        let text = format!(
            "//! {wide}\nfn a() {{\n    // {wide}\n    let x = 1; // {wide}\n}}\nmacro_rules! b {{\n        /// {wide}\n}}\n"
        );
        assert_eq!(found(Kind::Rust, &text), [1, 3, 4, 7]);
    }

    #[test]
    fn code_and_strings_are_not_comments() {
        let text = format!("    call({}x);\n    let text = \"a // {}\";\n", "x, ".repeat(40), wide());
        assert_eq!(found(Kind::Rust, &text), Vec::<usize>::new());
    }

    #[test]
    fn code_blocks_single_words_and_links_are_left_alone() {
        let wide = wide();
        let link = format!("<https://example.com/{}>", "x".repeat(100));
        let text = format!("/// ```text\n/// {wide}\n/// ```\n/// {link}\n/// {wide}\n");
        assert_eq!(found(Kind::Rust, &text), [5]);
        let text = format!(
            "```\n    {wide}\n{wide}\n```\n\n    {wide}\n\n| {wide} |\n\n- {link}\n- see [a page]({link}), \
             which is long\n{wide}\n"
        );
        assert_eq!(found(Kind::Markdown, &text), [12]);
    }

    #[test]
    fn wide_lists_are_found_in_pages() {
        let wide = wide();
        assert_eq!(found(Kind::Markdown, &format!("# A\n\n- {wide}\n  {wide}\n")), [3, 4]);
    }

    #[test]
    fn settings_are_not_prose() {
        let wide = wide();
        let text = format!("# {wide}\n# allow = \"{wide}\"\nallow = \"{wide}\"\n");
        assert_eq!(found(Kind::Hash, &text), [1]);
    }

    #[test]
    fn files_are_named_with_their_lines() {
        let root = std::env::temp_dir().join(format!("xtask-columns-{}", std::process::id()));
        fs::create_dir_all(root.join("built")).unwrap();
        fs::create_dir_all(root.join("src")).unwrap();
        fs::write(root.join("built/CACHEDIR.TAG"), "").unwrap();
        for file in ["built/a.rs", "src/a.rs"] {
            fs::write(root.join(file), format!("\n// {}\n", wide())).unwrap();
        }
        fs::write(root.join("README.md"), format!("{}\n", wide())).unwrap();
        fs::write(root.join("run"), format!("#!/bin/sh\n# {}\n", wide())).unwrap();
        let found = wide_lines(&root);
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(found.unwrap(), ["README.md:1", "run:2", "src/a.rs:2"]);
    }
}
