//! Takes out what looks like a secret.
//!
//! Nothing that the router itself reads or writes is a secret: its configuration has no keys or
//! passwords. But people write into comments what they like, and logs and settings of a machine
//! may have anything. So this goes by looks, and rather takes out too much.

/// What stands in a secret's place.
pub(super) const REMOVED: &str = "[removed]";

/// Words before a value that is a secret, in lower case. A separator follows.
const KEYS: &[&str] = &[
    "password",
    "passwd",
    "passphrase",
    "pwd",
    "secret",
    "token",
    "apikey",
    "api_key",
    "api-key",
    "accesskey",
    "access_key",
    "access-key",
    "accountkey",
    "account_key",
    "sharedkey",
    "sharedaccesskey",
    "sharedaccesssignature",
    "private_key",
    "privatekey",
    "private-key",
    "credential",
    "credentials",
    "authorization",
    "bearer",
    "cookie",
    "sig",
];
/// Of these, all that is left of the line is the value.
const WHOLE_LINE: &[&str] = &["authorization", "cookie"];
/// A shorter word of base64 is no key.
const KEY_LENGTH: usize = 40;

/// Returns the text without what looks like a secret.
pub(super) fn secrets(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut is_in_key = false;
    for line in text.split_inclusive('\n') {
        let is_begin = line.contains("-----BEGIN ") && line.contains("PRIVATE KEY");
        if is_begin && !is_in_key {
            clean.push_str(REMOVED);
            clean.push('\n');
        }
        is_in_key |= is_begin;
        if is_in_key {
            // One in a single line ("\n" written out) has its end there.
            is_in_key = !line.contains("-----END ");
        } else {
            clean.push_str(&of_line(line));
        }
    }
    clean
}

fn of_line(line: &str) -> String {
    let words = without_words(line);
    let users = without_users(&words);
    without_values(&users)
}

/// Takes the values off that stand behind the name of a secret.
fn without_values(line: &str) -> String {
    let lower = line.to_ascii_lowercase();
    let mut clean = String::new();
    let mut at = 0;
    while let Some((key, end)) = next_key(&lower, at) {
        let Some(start) = value_after(line, end, key) else {
            clean.push_str(&line[at..end]);
            at = end;
            continue;
        };
        let rest = &line[start..];
        let length = if WHOLE_LINE.contains(&key) {
            rest.trim_end_matches(['\n', '\r', '"', ',']).len()
        } else if let Some(quoted) = rest.strip_prefix(['"', '\'']) {
            quoted.find(['"', '\'', '\n']).map_or(rest.len(), |length| length + 2).min(rest.len())
        } else {
            rest.find(|c: char| c.is_whitespace() || "\"',;&)]}".contains(c)).unwrap_or(rest.len())
        };
        clean.push_str(&line[at..start]);
        if length > 0 {
            clean.push_str(REMOVED);
        }
        at = start + length;
    }
    clean.push_str(&line[at..]);
    clean
}

/// The next name of a secret from a place on, and its end.
fn next_key(lower: &str, from: usize) -> Option<(&'static str, usize)> {
    let rest = lower.get(from..)?;
    let found = KEYS.iter().filter_map(|key| {
        let mut places = rest.match_indices(key).map(|(place, _)| from + place);
        // "sig" of "signal" is none: a separator has to follow.
        let place = places.find(|place| {
            let after = lower.get(place + key.len()..).unwrap_or_default();
            after.starts_with(|c: char| !c.is_ascii_alphanumeric())
        })?;
        Some((*key, place + key.len()))
    });
    found.min_by_key(|(key, end)| (end - key.len(), std::cmp::Reverse(key.len())))
}

/// The place where the value begins: after `=` or `:`, or after a space for words of headers.
fn value_after(line: &str, end: usize, key: &str) -> Option<usize> {
    let rest = line.get(end..)?;
    let closed = rest.trim_start_matches(['"', '\'', ' ', '\t']);
    if let Some(value) = closed.strip_prefix(['=', ':']) {
        let value = value.trim_start_matches([' ', '\t']);
        return Some(line.len() - value.len());
    }
    let is_header = key == "bearer";
    let value = rest.trim_start_matches([' ', '\t']);
    (is_header && value.len() < rest.len()).then(|| line.len() - value.len())
}

/// Takes off words that are keys by themselves: JSON web tokens, and long base64.
fn without_words(line: &str) -> String {
    let mut clean = String::new();
    let mut rest = line;
    let is_part = |c: char| c.is_ascii_alphanumeric() || "+/=_.-".contains(c);
    while let Some(start) = rest.find(is_part) {
        let (before, from) = rest.split_at(start);
        let length = from.find(|c: char| !is_part(c)).unwrap_or(from.len());
        let (word, after) = from.split_at(length);
        clean.push_str(before);
        // "key=..." in one word: the value is what counts.
        let value = word.trim_end_matches('=').rfind('=').map_or(0, |place| place + 1);
        let (name, value) = word.split_at(value);
        clean.push_str(name);
        clean.push_str(if is_key(value) { REMOVED } else { value });
        rest = after;
    }
    clean.push_str(rest);
    clean
}

fn is_key(word: &str) -> bool {
    if word.starts_with("eyJ") && word.matches('.').count() == 2 {
        return true;
    }
    let base64 = word.trim_end_matches('=');
    let has = |is: fn(&char) -> bool| base64.chars().any(|c| is(&c));
    word.len() >= KEY_LENGTH
        && (base64.len() < word.len() || base64.contains('+'))
        && base64.chars().all(|c| c.is_ascii_alphanumeric() || "+/_-".contains(c))
        && has(char::is_ascii_lowercase)
        && has(char::is_ascii_uppercase)
        && has(char::is_ascii_digit)
}

/// Takes user and password off addresses of the form `https://user:password@host`.
fn without_users(line: &str) -> String {
    let mut clean = String::new();
    let mut rest = line;
    while let Some(place) = rest.find("://") {
        let (before, after) = rest.split_at(place + 3);
        clean.push_str(before);
        let end = after.find(|c: char| c.is_whitespace() || "/\"'".contains(c)).unwrap_or(after.len());
        let user = after.get(..end).and_then(|host| host.rfind('@'));
        if user.is_some() {
            clean.push_str(REMOVED);
        }
        rest = &after[user.unwrap_or(0)..];
    }
    clean.push_str(rest);
    clean
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_looks_like_a_secret_is_taken_out() {
        for (text, clean) in [
            ("# password = hunter2\n", "# password = [removed]\n"),
            ("PASSWORD: 'hunter2 x' # old\n", "PASSWORD: [removed] # old\n"),
            ("{\"client_secret\": \"hunter2\", \"a\": 1}", "{\"client_secret\": [removed], \"a\": 1}"),
            ("db_token=hunter2&x=1", "db_token=[removed]&x=1"),
            ("Authorization: Basic aHVudGVyMg==\n", "Authorization: [removed]\n"),
            ("curl -H 'x: Bearer hunter2' y", "curl -H 'x: Bearer [removed]' y"),
            ("https://me:hunter2@host/x", "https://[removed]@host/x"),
            ("?sv=1&sig=hunter2%3D", "?sv=1&sig=[removed]"),
            ("jwt eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.hunter2 end", "jwt [removed] end"),
            ("key Zm9vYmFyMTIzNDU2Nzg5MGFiY2RlZmdoaWprbG1ub3BxcnN0dXZ3eHl6QUJDREVGRw== x", "key [removed] x"),
            (
                "a\n-----BEGIN OPENSSH PRIVATE KEY-----\nhunter2\n-----END OPENSSH PRIVATE KEY-----\nb\n",
                "a\n[removed]\nb\n",
            ),
            ("-----BEGIN PRIVATE KEY-----\nhunter2 without an end", "[removed]\n"),
        ] {
            assert_eq!(secrets(text), clean, "{text}");
        }
    }

    #[test]
    fn what_does_not_is_left_alone() {
        for text in [
            "signal: 9\n",
            "sources = [\"10.0.2.64/26\"]\n",
            "program id 41, tag 0123456789abcdef0123456789abcdef0123456789abcdef\n",
            "the token bucket is empty\n",
            "/usr/lib/modules/6.1.0-57-cloud-amd64/kernel/drivers/net/ethernet/mellanox/mlx5/core/mlx5_core.ko\n",
            "",
            "\n\n",
        ] {
            assert_eq!(secrets(text), text);
        }
    }

    proptest! {
        /// For any text around it: what was taken out does not come back, and any text is read.
        #[test]
        fn any_text_is_read(before in ".{0,80}", key in proptest::sample::select(KEYS), after in ".{0,40}") {
            let clean = secrets(&format!("{before}\n{key}=hunter2\n{after}"));
            prop_assert!(!clean.contains("hunter2") || before.contains("PRIVATE KEY"), "{clean}");
            secrets(&format!("{before}{key}{after}"));
        }
    }
}
