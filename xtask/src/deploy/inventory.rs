//! The hosts of a deploy: those of the command line, and those of a file.

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

/// Returns a word as a host, or says why ssh would not take it for one.
pub(super) fn host(text: &str) -> Result<String, String> {
    // ssh would take the first for an option.
    if text.is_empty() || text.starts_with('-') || text.contains(char::is_whitespace) {
        return Err("a HOST is what ssh takes: an address, user@address or a name".to_owned());
    }
    Ok(text.to_owned())
}

/// All hosts in their order, those named on the command line first.
pub(super) fn hosts(named: &[String], file: Option<&Path>) -> Result<Vec<String>> {
    let mut hosts = Vec::new();
    for name in named {
        ensure!(!hosts.contains(name), "{name} is named twice\n  fix: name each host once");
        hosts.push(name.clone());
    }
    let Some(file) = file else { return Ok(hosts) };
    let shown = file.display();
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read the inventory {shown}"))?;
    for (line, name) in lines(&text) {
        match host(name) {
            Ok(name) if hosts.contains(&name) => {
                bail!("{shown}:{line}: {name} is named already\n  fix: name each host once")
            }
            Ok(name) => hosts.push(name),
            Err(why) => bail!("{shown}:{line}: `{name}`: {why}\n  fix: one host a line; # begins a comment"),
        }
    }
    ensure!(!hosts.is_empty(), "{shown} names no host\n  fix: one host a line; # begins a comment");
    Ok(hosts)
}

/// The lines that say something, with their numbers.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().filter_map(|(index, line)| {
        let line = line.split('#').next().unwrap_or_default().trim();
        (!line.is_empty()).then_some((index + 1, line))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(named: &[&str], text: &str) -> Result<Vec<String>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let named: Vec<_> = named.iter().map(|name| (*name).to_owned()).collect();
        hosts(&named, Some(file.path()))
    }

    #[test]
    fn a_file_has_a_host_on_each_line() {
        let text = "# zone 1\nrouter-1\n\n  azureuser@10.0.2.68\t# zone 2\r\n";
        assert_eq!(of(&["first"], text).unwrap(), ["first", "router-1", "azureuser@10.0.2.68"]);
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said_with_its_line() {
        let cases = [
            (&[][..], "a\nb c\n", ":2: `b c`"),
            (&[], "-oProxyCommand=x", ":1: `-oProxyCommand=x`"),
            (&["a"], "# x\na", ":2: a is named already"),
            (&[], "# nobody\n", "names no host"),
        ];
        for (named, text, said) in cases {
            let error = of(named, text).unwrap_err().to_string();
            assert!(error.contains(said) && error.contains("\n  fix: "), "{error}");
        }
        let error = hosts(&[], Some(Path::new("/nonexistent"))).unwrap_err().to_string();
        assert!(error.contains("/nonexistent"), "{error}");
        hosts(&["a".to_owned(), "a".to_owned()], None).unwrap_err();
    }
}
