//! Makes the type names in an object's BTF names that the kernel accepts.
//!
//! The kernel accepts only names that C would (`btf_name_valid_identifier`, kernel/bpf/btf.c).
//! bpf-linker rewrites the names of Rust's generic structures, but not of generic unions such as
//! `MaybeUninit<u8>`. The kernel then refuses all of the object's BTF, and every program that needs
//! some, such as one with a `bpf_loop` callback. Names are for people only, so each character that
//! is not allowed becomes a `_`.

use anyhow::{Context as _, Result, bail, ensure};
use object::{Object as _, ObjectSection as _};

const MAGIC: u16 = 0xeb9f;

/// Renames in place. Leaves an object without BTF as it is.
///
/// # Errors
///
/// Returns an error if the object is not an ELF file, or its BTF is damaged.
pub(crate) fn sanitize(object: &mut [u8]) -> Result<()> {
    let section = object::File::parse(&*object)?.section_by_name(".BTF").map(|section| section.file_range());
    let Some(range) = section else { return Ok(()) };
    let (start, length) = range.context("the .BTF section has no bytes")?;
    let (start, length) = (usize::try_from(start)?, usize::try_from(length)?);
    let btf = object.get_mut(start..).and_then(|rest| rest.get_mut(..length));
    let btf = btf.context("the .BTF section lies outside the object")?;
    // `struct btf_header`, include/uapi/linux/btf.h.
    let magic = btf.first_chunk().map(|magic| u16::from_le_bytes(*magic));
    ensure!(magic == Some(MAGIC), "the .BTF section does not begin with BTF's magic number");
    let header = word(btf, 4)?;
    let types = header + word(btf, 8)?;
    let (end, strings) = (types + word(btf, 12)?, header + word(btf, 16)?);
    let mut at = types;
    while at < end {
        // `struct btf_type`, and then by kind.
        let (name, info) = (word(btf, at)?, word(btf, at + 4)?);
        at += 12 + trailing_bytes((info >> 24) & 0x1f, info & 0xffff)?;
        if name != 0 {
            rename(btf.get_mut(strings + name..).context("a type's name lies outside BTF's strings")?);
        }
    }
    Ok(())
}

/// Returns the number of bytes after a `struct btf_type` of this kind.
fn trailing_bytes(kind: usize, members: usize) -> Result<usize> {
    Ok(match kind {
        // INT, VAR, DECL_TAG
        1 | 14 | 17 => 4,
        // ARRAY
        3 => 12,
        // STRUCT, UNION, DATASEC, ENUM64
        4 | 5 | 15 | 19 => members * 12,
        // ENUM, FUNC_PROTO
        6 | 13 => members * 8,
        // PTR, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FLOAT, TYPE_TAG
        2 | 7..=12 | 16 | 18 => 0,
        kind => bail!("BTF has a type of the unknown kind {kind}"),
    })
}

fn rename(name: &mut [u8]) {
    for byte in name.iter_mut().take_while(|byte| **byte != 0) {
        if !byte.is_ascii_alphanumeric() && !matches!(byte, b'_' | b'.') {
            *byte = b'_';
        }
    }
}

fn word(bytes: &[u8], at: usize) -> Result<usize> {
    let word = bytes.get(at..).and_then(<[u8]>::first_chunk).context("BTF ends too early")?;
    Ok(usize::try_from(u32::from_le_bytes(*word))?)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// BTF of a union `U<u8>` with one member, then an integer `u8`.
    fn btf() -> Vec<u8> {
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        let mut types = words(&[1, 5 << 24 | 1, 1, 7, 2, 0]);
        types.extend(words(&[10, 1 << 24, 1, 8]));
        let strings = b"\0U<u8>\0m,\0u8\0";
        let mut btf = vec![0x9f, 0xeb, 1, 0];
        btf.extend(words(&[24, 0, types.len() as u32, types.len() as u32, strings.len() as u32]));
        btf.extend(types);
        btf.extend(strings);
        btf
    }

    /// An ELF64 file for BPF with that BTF.
    pub(crate) fn object() -> Vec<u8> {
        let names = b"\0.BTF\0.names\0";
        let btf = btf();
        let mut object = vec![0; 64];
        object[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        // EM_BPF
        object[18] = 247;
        let names_at = object.len() as u64;
        object.extend(names);
        let btf_at = object.len() as u64;
        object.extend(&btf);
        let table = object.len() as u64;
        for (name, at, length) in [(1_u32, btf_at, btf.len()), (6, names_at, names.len())] {
            let mut header = [0; 64];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[0x18..0x20].copy_from_slice(&at.to_le_bytes());
            header[0x20..0x28].copy_from_slice(&(length as u64).to_le_bytes());
            object.extend(header);
        }
        object[0x28..0x30].copy_from_slice(&table.to_le_bytes());
        object[0x3a] = 64;
        object[0x3c] = 2;
        object[0x3e] = 1;
        object
    }

    #[test]
    fn type_names_become_identifiers_and_nothing_else_changes() {
        let mut object = object();
        let before = object.clone();
        sanitize(&mut object).unwrap();
        let text = String::from_utf8_lossy(&object);
        assert!(text.contains("\0U_u8_\0m,\0u8\0"), "{text:?}");
        assert_eq!(object.iter().zip(&before).filter(|(new, old)| new != old).count(), 2);
    }

    #[test]
    fn damaged_objects_are_errors() {
        let whole = object();
        assert!(sanitize(&mut [0; 64]).is_err());
        for length in 0..whole.len() {
            // No prefix makes it panic; most are errors.
            let _ = sanitize(&mut whole[..length].to_vec());
        }
    }
}
