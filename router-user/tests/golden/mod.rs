//! Comparing what the program says with what a file beside the test says it should.

use std::path::Path;

/// Fails unless `actual` is what `path` holds. `UPDATE=1` writes the file instead, to be read in
/// the diff.
pub(crate) fn check(path: &Path, actual: &str) {
    let actual = format!("{}\n", actual.trim_end());
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, actual)
            .unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
        return;
    }
    let expected = std::fs::read_to_string(path)
        .unwrap_or_else(|error| panic!("cannot read {}: {error}; UPDATE=1 writes it", path.display()));
    assert!(
        expected == actual,
        "{} differs; if the new text is better, UPDATE=1 writes it.\n--- expected\n{expected}\n--- actual\n{actual}",
        path.display()
    );
}
