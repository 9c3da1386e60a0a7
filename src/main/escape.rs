//! Escapes text from a client, for lines that a program or a terminal reads.
//!
//! Invariant: no byte of the text ends the line, ends the quotes around it, or moves a terminal's
//! cursor. This file does not know the line.

use std::fmt::Write;

/// Adds `text` in quotes, escaped as in nginx. Quotes, backslashes, and bytes that are not
/// printable ASCII become `\xHH`.
pub(crate) fn quoted(line: &mut String, text: &str) {
    line.push('"');
    plain(line, text);
    line.push('"');
}

/// Adds `text` without quotes, escaped as by [`quoted`].
pub(crate) fn plain(line: &mut String, text: &str) {
    if is_all_harmless(text) {
        line.push_str(text);
        return;
    }
    for byte in text.bytes() {
        if is_harmless(byte) {
            line.push(char::from(byte));
        } else {
            line.push_str("\\x");
            line.extend(
                [byte >> 4, byte & 15]
                    .map(|half| char::from(b"0123456789ABCDEF"[usize::from(half)])),
            );
        }
    }
}

/// Adds `text` as a string of JSON. All characters stay, apart from those that control a terminal
/// or end a line.
pub(crate) fn json(line: &mut String, text: &str) {
    if is_all_harmless(text) {
        // Such a text is the same in both formats.
        return quoted(line, text);
    }
    line.push('"');
    for letter in text.chars() {
        match letter {
            '"' => line.push_str("\\\""),
            '\\' => line.push_str("\\\\"),
            '\u{2028}' | '\u{2029}' => drop(write!(line, "\\u{:04x}", u32::from(letter))),
            letter if letter.is_control() => drop(write!(line, "\\u{:04x}", u32::from(letter))),
            letter => line.push(letter),
        }
    }
    line.push('"');
}

/// Returns `true` if no format escapes a byte of the text.
fn is_all_harmless(text: &str) -> bool {
    // Without a branch for each byte, the processor compares many bytes at once.
    text.bytes().fold(true, |so_far, byte| so_far & is_harmless(byte))
}

/// Returns `true` if no format escapes the byte.
fn is_harmless(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leaves_its_quotes() {
        for (text, as_quoted, as_json) in [
            ("", r#""""#, r#""""#),
            ("/a?b=c d", r#""/a?b=c d""#, r#""/a?b=c d""#),
            ("a\"b\\c", r#""a\x22b\x5Cc""#, r#""a\"b\\c""#),
            ("a\r\nb\tc\0", r#""a\x0D\x0Ab\x09c\x00""#, r#""a\u000d\u000ab\u0009c\u0000""#),
            ("\x1b[2J\x7f", r#""\x1B[2J\x7F""#, r#""\u001b[2J\u007f""#),
            ("é\u{9b}\u{2028}", r#""\xC3\xA9\xC2\x9B\xE2\x80\xA8""#, r#""é\u009b\u2028""#),
        ] {
            let mut line = String::new();
            quoted(&mut line, text);
            assert_eq!(line, as_quoted, "{text:?}");
            line.clear();
            json(&mut line, text);
            assert_eq!(line, as_json, "{text:?}");
        }
    }
}
