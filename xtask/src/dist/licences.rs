//! The licences of the libraries that are in the program, which ask to be shipped with it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::dependencies::Dependency;
use super::runtime::{MUSL, Part};

/// The beginnings of the names of files with licences.
const NAMES: [&str; 6] = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE"];

/// The notice that musl's licence asks for.
const MUSL_NOTICE: &str = "\
Copyright \u{a9} 2005-2020 Rich Felker, et al.

Permission is hereby granted, free of charge, to any person obtaining
a copy of this software and associated documentation files (the
\"Software\"), to deal in the Software without restriction, including
without limitation the rights to use, copy, modify, merge, publish,
distribute, sublicense, and/or sell copies of the Software, and to
permit persons to whom the Software is furnished to do so, subject to
the following conditions:

The above copyright notice and this permission notice shall be
included in all copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED \"AS IS\", WITHOUT WARRANTY OF ANY KIND,
EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF
MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT.
IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY
CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT,
TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE
SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
";

/// Returns a page with each licence's text once, below the names of the libraries that have it.
pub(super) fn page(dependencies: &[Dependency], parts: &[Part]) -> Result<String> {
    let mut page = "The libraries in pls-router, and their licences.\n\n".to_owned();
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for Dependency { name, version, licence, source, repository } in dependencies {
        let place = repository.as_deref().unwrap_or_default();
        writeln!(page, "{name} {version}: {licence} {place}")?;
        for text in texts_in(source)? {
            texts.entry(text).or_default().push(format!("{name} {version}"));
        }
    }
    for part @ Part { name, licence, repository, .. } in parts {
        let version = part.version.as_deref().map(|version| format!(" {version}")).unwrap_or_default();
        writeln!(page, "{name}{version}: {licence} {repository}")?;
        if *name == MUSL {
            texts.insert(MUSL_NOTICE.to_owned(), vec![MUSL.to_owned()]);
        }
    }
    for (text, names) in texts {
        writeln!(page, "\n{}\n{}:\n\n{}", "=".repeat(80), names.join(", "), text.trim_end())?;
    }
    Ok(page)
}

fn texts_in(source: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(source).with_context(|| format!("cannot read {}", source.display()))?;
    let mut texts = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("cannot read {}", source.display()))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
        if path.is_file() && NAMES.iter().any(|known| name.starts_with(known)) {
            let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            texts.push(String::from_utf8_lossy(&text).replace("\r\n", "\n"));
        }
    }
    // In whatever order the directory has them.
    texts.sort();
    Ok(texts)
}
