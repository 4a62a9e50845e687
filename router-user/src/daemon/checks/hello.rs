//! The two TLS messages that a check needs: the ClientHello, and the beginning of what answers it
//! (RFC 8446, RFC 5246, RFC 6066).
//!
//! The handshake ends there, so nothing is encrypted, and no key or certificate is looked at. A TLS
//! library would bring more code than the rest of the daemon's network code for these few bytes.

/// The random numbers of a ClientHello: its random, session identifier and key share.
pub(super) type Random = [[u8; 32]; 3];

/// `handshake`, RFC 8446 5.1.
const HANDSHAKE: u8 = 22;
/// `alert`, RFC 8446 5.1.
const ALERT: u8 = 21;
/// `client_hello`, RFC 8446 4.
const CLIENT_HELLO: u8 = 1;
/// `server_hello`, RFC 8446 4; a HelloRetryRequest is one, too (4.1.4).
const SERVER_HELLO: u8 = 2;
/// `warning`, RFC 5246 7.2.
const WARNING: u8 = 1;
/// `close_notify`, RFC 8446 6.1.
const CLOSE_NOTIFY: u8 = 0;
/// The length of a record's header.
const HEADER: usize = 5;
/// The longest record: 2^14 bytes and what encryption may add (RFC 5246 6.2.3).
const MAX_RECORD: usize = (1 << 14) + 2048;

/// AES and ChaCha20 of TLS 1.3; of TLS 1.2, what servers of the last fifteen years have (RFC 8446
/// B.4, RFC 5289, RFC 7905, RFC 5288, RFC 5246 A.5).
const CIPHER_SUITES: [u16; 15] = [
    0x1301, 0x1302, 0x1303, 0xc02b, 0xc02f, 0xc02c, 0xc030, 0xcca9, 0xcca8, 0x009c, 0x009d, 0xc013, 0xc014,
    0x002f, 0x0035,
];
/// X25519, P-256, P-384 (RFC 8446 4.2.7).
const GROUPS: [u16; 3] = [0x001d, 0x0017, 0x0018];
/// ECDSA, RSA-PSS and RSA with SHA-2, Ed25519, and RSA with SHA-1 for old servers (RFC 8446 4.2.3).
const SIGNATURES: [u16; 10] =
    [0x0403, 0x0503, 0x0603, 0x0807, 0x0804, 0x0805, 0x0806, 0x0401, 0x0501, 0x0201];
/// TLS 1.3 and 1.2.
const VERSIONS: [u16; 2] = [0x0304, 0x0303];

/// Bytes with fields of variable length.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    fn u16(&mut self, value: u16) {
        self.0.extend(value.to_be_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
    }

    /// Writes a field with its length in front, in this number of bytes. All fields here are
    /// shorter than 2^16.
    fn field(&mut self, length: usize, write: impl FnOnce(&mut Self)) {
        let mut inner = Self::default();
        write(&mut inner);
        let size = (inner.0.len() as u64).to_be_bytes();
        self.0.extend(&size[size.len() - length..]);
        self.0.append(&mut inner.0);
    }

    fn extension(&mut self, number: u16, write: impl FnOnce(&mut Self)) {
        self.u16(number);
        self.field(2, write);
    }

    fn list(&mut self, length: usize, values: &[u16]) {
        self.field(length, |list| values.iter().for_each(|value| list.u16(*value)));
    }
}

/// Returns a record with a ClientHello for TLS 1.2 and 1.3 (RFC 8446 4.1.2).
///
/// `server_name`: a DNS name, which the configuration has checked.
pub(super) fn client_hello(server_name: Option<&str>, [random, session, key]: &Random) -> Vec<u8> {
    let mut record = Writer::default();
    record.u8(HANDSHAKE);
    // As old as servers know it (RFC 8446 5.1).
    record.u16(0x0301);
    record.field(2, |record| {
        record.u8(CLIENT_HELLO);
        record.field(3, |hello| {
            hello.u16(0x0303);
            hello.bytes(random);
            // What stands in between may want one (RFC 8446 D.4).
            hello.field(1, |hello| hello.bytes(session));
            hello.list(2, &CIPHER_SUITES);
            // No compression.
            hello.field(1, |hello| hello.u8(0));
            hello.field(2, |extensions| write_extensions(extensions, server_name, key));
        });
    });
    record.0
}

fn write_extensions(extensions: &mut Writer, server_name: Option<&str>, key: &[u8; 32]) {
    if let Some(name) = server_name {
        // RFC 6066 section 3: a list of one host name.
        extensions.extension(0, |extension| {
            extension.field(2, |list| {
                list.u8(0);
                list.field(2, |list| list.bytes(name.as_bytes()));
            });
        });
    }
    // supported_groups, signature_algorithms.
    extensions.extension(10, |extension| extension.list(2, &GROUPS));
    extensions.extension(13, |extension| extension.list(2, &SIGNATURES));
    // ec_point_formats: uncompressed (RFC 8422 5.1.2).
    extensions.extension(11, |extension| extension.field(1, |formats| formats.u8(0)));
    // extended_master_secret (RFC 7627), renegotiation_info (RFC 5746).
    extensions.extension(23, |_| {});
    extensions.extension(0xff01, |extension| extension.field(1, |_| {}));
    // supported_versions (RFC 8446 4.2.1).
    extensions.extension(43, |extension| extension.list(1, &VERSIONS));
    // key_share (RFC 8446 4.2.8). Any 32 bytes are a public key of X25519 (RFC 7748).
    extensions.extension(51, |extension| {
        extension.field(2, |shares| {
            shares.u16(GROUPS[0]);
            shares.field(2, |share| share.bytes(key));
        });
    });
}

/// The beginning of what a server says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Reply {
    /// Not enough to tell.
    More,
    /// A ServerHello: a server speaks TLS.
    ServerHello,
    /// An alert that ends the handshake, with its number.
    Alert(u8),
    /// Something that is no answer to a ClientHello.
    Other,
}

/// Returns what the bytes that a server has sent so far are.
pub(super) fn reply(mut received: &[u8]) -> Reply {
    loop {
        let [kind, major, _, high, low, payload @ ..] = received else {
            // What has come so far may tell already.
            let looks_like_tls = match received {
                [] => true,
                [kind] => matches!(*kind, HANDSHAKE | ALERT),
                [kind, major, ..] => matches!(*kind, HANDSHAKE | ALERT) && *major == 3,
            };
            return if looks_like_tls { Reply::More } else { Reply::Other };
        };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        if *major != 3 || length == 0 || length > MAX_RECORD {
            return Reply::Other;
        }
        match (*kind, payload) {
            (HANDSHAKE, []) => return Reply::More,
            (HANDSHAKE, [SERVER_HELLO, ..]) => return Reply::ServerHello,
            (ALERT, [] | [_]) => return Reply::More,
            // Servers of TLS 1.2 may warn that they do not know the name, and go on (RFC 6066
            // section 3).
            (ALERT, [WARNING, description, rest @ ..]) if *description != CLOSE_NOTIFY && length == 2 => {
                received = rest;
            }
            (ALERT, [_, description, ..]) => return Reply::Alert(*description),
            _ => return Reply::Other,
        }
    }
}

/// The bytes of a ServerHello and of warnings before it that are looked at.
pub(super) const ENOUGH: usize = 8 * (HEADER + 2);

/// Returns the name of an alert (RFC 8446 6.2 and B.2, RFC 5246 7.2), if it has one.
pub(super) const fn alert_name(description: u8) -> Option<&'static str> {
    Some(match description {
        CLOSE_NOTIFY => "close_notify",
        10 => "unexpected_message",
        20 => "bad_record_mac",
        22 => "record_overflow",
        40 => "handshake_failure",
        42 => "bad_certificate",
        43 => "unsupported_certificate",
        44 => "certificate_revoked",
        45 => "certificate_expired",
        46 => "certificate_unknown",
        47 => "illegal_parameter",
        48 => "unknown_ca",
        49 => "access_denied",
        50 => "decode_error",
        51 => "decrypt_error",
        70 => "protocol_version",
        71 => "insufficient_security",
        80 => "internal_error",
        86 => "inappropriate_fallback",
        90 => "user_canceled",
        109 => "missing_extension",
        110 => "unsupported_extension",
        112 => "unrecognized_name",
        113 => "bad_certificate_status_response",
        115 => "unknown_psk_identity",
        116 => "certificate_required",
        120 => "no_application_protocol",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RANDOM: Random = [[1; 32], [2; 32], [3; 32]];

    /// Reads fields with a length in front; a second reading of the format.
    struct Reader<'a>(&'a [u8]);

    impl<'a> Reader<'a> {
        fn take(&mut self, length: usize) -> &'a [u8] {
            let (taken, rest) = self.0.split_at(length);
            self.0 = rest;
            taken
        }

        fn number(&mut self, length: usize) -> usize {
            self.take(length).iter().fold(0, |number, byte| number << 8 | usize::from(*byte))
        }

        fn field(&mut self, length: usize) -> Reader<'a> {
            let size = self.number(length);
            Reader(self.take(size))
        }
    }

    /// Returns the extensions of a ClientHello, after a look at everything before them.
    fn extensions(record: &[u8]) -> Vec<(usize, Vec<u8>)> {
        let mut record = Reader(record);
        assert_eq!((record.number(1), record.number(2)), (22, 0x0301));
        let mut payload = record.field(2);
        assert!(record.0.is_empty(), "one record");
        assert_eq!(payload.number(1), 1, "a ClientHello");
        let mut hello = payload.field(3);
        assert!(payload.0.is_empty(), "one message");
        assert_eq!((hello.number(2), hello.take(32)), (0x0303, &RANDOM[0][..]));
        assert_eq!(hello.field(1).0, RANDOM[1]);
        let suites = hello.field(2).0;
        assert!(suites.len() == 30 && suites.starts_with(&[0x13, 0x01]));
        assert_eq!(hello.field(1).0, [0]);
        let mut extensions = hello.field(2);
        assert!(hello.0.is_empty(), "nothing after the extensions");
        let mut found = Vec::new();
        while !extensions.0.is_empty() {
            found.push((extensions.number(2), extensions.field(2).0.to_vec()));
        }
        found
    }

    #[test]
    fn a_client_hello_is_well_formed() {
        let found = extensions(&client_hello(Some("www.example.com"), &RANDOM));
        let numbers: Vec<usize> = found.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, [0, 10, 13, 11, 23, 0xff01, 43, 51]);
        let name = [&[0, 18, 0, 0, 15], b"www.example.com".as_slice()].concat();
        assert_eq!(found[0].1, name);
        assert_eq!(found[6].1, [4, 3, 4, 3, 3]);
        assert_eq!(found[7].1, [&[0, 36, 0, 0x1d, 0, 32], RANDOM[2].as_slice()].concat());
    }

    #[test]
    fn without_a_name_there_is_no_extension_for_it() {
        let found = extensions(&client_hello(None, &RANDOM));
        assert!(found.iter().all(|(number, _)| *number != 0));
    }

    #[test]
    fn replies() {
        const SERVER_HELLO: [u8; 9] = [22, 3, 3, 0, 80, 2, 0, 0, 76];
        const UNRECOGNIZED: [u8; 7] = [21, 3, 3, 0, 2, 1, 112];
        for length in 0..6 {
            assert_eq!(reply(&SERVER_HELLO[..length]), Reply::More, "{length}");
        }
        assert_eq!(reply(&SERVER_HELLO[..6]), Reply::ServerHello);
        assert_eq!(reply(&[21, 3, 3, 0, 2, 2, 40]), Reply::Alert(40));
        assert_eq!(reply(&[21, 3, 3, 0, 2, 1, 0]), Reply::Alert(0), "it closes");
        assert_eq!(reply(&UNRECOGNIZED), Reply::More, "a warning");
        assert_eq!(reply(&[&UNRECOGNIZED[..], &SERVER_HELLO].concat()), Reply::ServerHello);
        assert_eq!(reply(&[&UNRECOGNIZED[..], &[21, 3, 3, 0, 2, 2, 40]].concat()), Reply::Alert(40));
        for other in [
            &b"SSH-2.0-OpenSSH"[..],
            b"H",
            b"HTTP/1.1 400",
            &[22, 2],
            &[22, 3, 3, 0, 0],
            &[22, 3, 3, 0, 4, 1],
        ] {
            assert_eq!(reply(other), Reply::Other, "{other:?}");
        }
        assert_eq!(reply(&[23, 3, 3, 0, 4, 1]), Reply::Other, "application data");
        assert_eq!(reply(&[22, 3, 3, 0xff, 0xff, 2]), Reply::Other, "too long");
    }

    #[test]
    fn all_warnings_that_are_read_fit() {
        let warnings = [21, 3, 3, 0, 2, 1, 112].repeat(8);
        assert_eq!((reply(&warnings), warnings.len()), (Reply::More, ENOUGH));
    }

    proptest! {
        /// No bytes are a problem, and what is known of some is not changed by more of them.
        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..64), start in 0..3_usize) {
            let mut bytes = bytes;
            let starts: [&[u8]; 3] = [&[], &[22, 3, 3, 0, 80], &[21, 3, 3, 0, 2, 1]];
            bytes.splice(0..0, starts[start].iter().copied());
            let mut known = Reply::More;
            for length in 0..=bytes.len() {
                let now = reply(&bytes[..length]);
                prop_assert!(known == Reply::More || now == known, "{known:?} became {now:?}");
                known = now;
            }
        }

        #[test]
        fn any_name_fits(name in "[a-z0-9-]{1,60}(\\.[a-z]{1,60}){0,3}") {
            let found = extensions(&client_hello(Some(&name), &RANDOM));
            prop_assert_eq!(&found[0].1[5..], name.as_bytes());
        }
    }
}
