//! Damage: what bugs and attackers make of a frame.

use crate::{
    frames::{LONGEST, SHORTEST},
    random::{Draw as _, Random},
    wire::{IP, repair_header, repair_transport},
};

const BYTES: [u8; 10] = [0, 1, 2, 4, 0x1f, 0x45, 0x46, 0x7f, 0x80, 0xff];
const WORDS: [u16; 16] = [0, 1, 7, 8, 19, 20, 27, 28, 39, 40, 576, 1500, 0x1fff, 0x2000, 0x7fff, 0xffff];

/// Damages a frame in a few places; then most get right checksums again, so that what is looked at
/// later is reached.
pub(crate) fn mutate(random: &mut Random, frame: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..random.pick(&[1, 1, 1, 2, 2, 4, 8]) {
        damage(random, frame, other);
    }
    if frame.len() > IP {
        let packet = &mut frame[IP..];
        let repair = random.usize(..10);
        if repair < 7 {
            repair_transport(packet);
        }
        if repair < 8 {
            repair_header(packet);
        }
    }
}

fn damage(random: &mut Random, frame: &mut Vec<u8>, other: &[u8]) {
    let length = frame.len();
    // Headers are where it matters.
    let at = if random.percent(80) { random.usize(..length.min(70)) } else { random.usize(..length) };
    match random.usize(..14) {
        0 | 1 => frame[at] ^= 1 << random.usize(..8),
        2 => frame[at] = random.pick(&BYTES),
        3 => frame[at] = random.u8(..),
        4 => set_word(frame, at & !1, random.pick(&WORDS)),
        5 => frame.truncate(random.usize(SHORTEST..=length)),
        6 => {
            let padding = random.usize(1..=64);
            let bytes = random.bytes(padding);
            frame.extend(bytes);
        }
        7 => {
            // The beginning of one with the end of another.
            frame.truncate(at.max(SHORTEST));
            frame.extend(other.get(at..).unwrap_or_default());
        }
        8 => {
            // The lengths that headers tell: of IP, of UDP, and of the TCP and IP headers.
            let near = (length as u16).wrapping_sub(14).wrapping_add(random.u16(..5)).wrapping_sub(2);
            match random.usize(..4) {
                0 => set_word(frame, IP + 2, near),
                1 => set_word(frame, IP + 24, near.wrapping_sub(20)),
                2 => set_byte(frame, IP + 32, random.u8(..)),
                _ => set_byte(frame, IP, 0x40 | random.u8(..) & 0x0f),
            }
        }
        9 => {
            let count = random.usize(1..=20);
            let from = random.usize(..length);
            let piece = frame[from..length.min(from + count)].to_vec();
            for (byte, new) in frame[at..].iter_mut().zip(piece) {
                *byte = new;
            }
        }
        10 => set_byte(frame, IP + 8, random.pick(&[0, 1, 2, 255])),
        11 => set_word(
            frame,
            IP + 6,
            random.pick(&[0, 0x4000, 0x2000, 0x6000, 1, 0x2001, 0x8000, 0x1fff, 0x00b9]),
        ),
        12 => set_byte(frame, IP + 9, random.pick(&[1, 6, 17, 47])),
        _ => {
            // Source and destination: changed over, or the same.
            if let Some(addresses) = frame.get_mut(IP + 12..IP + 20) {
                let (source, destination) = addresses.split_at_mut(4);
                if random.percent(50) {
                    source.swap_with_slice(destination);
                } else {
                    source.copy_from_slice(destination);
                }
            }
        }
    }
    frame.truncate(LONGEST);
}

fn set_byte(frame: &mut [u8], at: usize, value: u8) {
    if let Some(byte) = frame.get_mut(at) {
        *byte = value;
    }
}

fn set_word(frame: &mut [u8], at: usize, value: u16) {
    if let Some(bytes) = frame.get_mut(at..at + 2) {
        bytes.copy_from_slice(&value.to_be_bytes());
    }
}
