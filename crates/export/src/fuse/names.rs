//! A disk's name as a file's, and back.

/// The longest name a file may have, in bytes.
const LONGEST: usize = 255;

/// The file of a disk with this name; `None` when it would be too long to be one.
///
/// `/`, `%`, control characters and a dot in front are written as `%` and two hexadecimal digits, so two
/// disks never share a file and none is hidden, `.` or `..`. The empty name is `%`.
pub(super) fn file_of(name: &str) -> Option<String> {
    let mut file = String::with_capacity(name.len());
    for (index, letter) in name.char_indices() {
        if letter == '/'
            || letter == '%'
            || letter.is_ascii_control()
            || (letter == '.' && index == 0)
        {
            file.push('%');
            for digit in [letter as u32 >> 4, letter as u32 & 15] {
                file.extend(char::from_digit(digit, 16).map(|digit| digit.to_ascii_uppercase()));
            }
        } else {
            file.push(letter);
        }
    }
    if file.is_empty() {
        file.push('%');
    }
    (file.len() <= LONGEST).then_some(file)
}

/// The disk with this file; `None` when [`file_of`] would not have named it so.
pub(super) fn disk_of(file: &str) -> Option<String> {
    let mut name = String::with_capacity(file.len());
    if file != "%" {
        let mut pieces = file.split('%');
        name.push_str(pieces.next().unwrap_or_default());
        for piece in pieces {
            let (digits, rest) = piece.split_at_checked(2)?;
            let letter = u8::from_str_radix(digits, 16).ok().filter(u8::is_ascii)?;
            name.push(char::from(letter));
            name.push_str(rest);
        }
    }
    // What could be written in two ways is found in one: `%41` is not `A`.
    (file_of(&name).as_deref() == Some(file)).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_files_and_back() {
        for (name, file) in [
            ("root", "root"),
            ("base@first", "base@first"),
            ("a/b", "a%2Fb"),
            ("100%", "100%25"),
            ("..", "%2E."),
            (".hidden", "%2Ehidden"),
            ("tab\there", "tab%09here"),
            ("Größe", "Größe"),
            ("", "%"),
        ] {
            assert_eq!(file_of(name).as_deref(), Some(file));
            assert_eq!(disk_of(file).as_deref(), Some(name));
        }
    }

    #[test]
    fn what_names_no_disk_leads_nowhere() {
        for file in [".", "..", "%41", "%2f", "%2", "%é", "%%", "a%", "a/b", "%FF", "%+1"] {
            assert_eq!(disk_of(file), None, "{file}");
        }
        assert_eq!(file_of(&"x".repeat(256)), None);
    }
}
