//! Bash, which takes a word apart at each `@`, `=` and `:` before anybody is asked to complete it. So it hands over the
//! line as it was typed, and the words are found here.

use std::ffi::OsString;
use std::io;
use std::path::Path;

use clap::Command;
use clap_complete::env::EnvCompleter;

/// Asked with the line up to the cursor as its only word, and in `_KILN_WORD` the part of the last word that bash is
/// going to replace.
#[derive(Debug)]
pub(super) struct Bash;

impl EnvCompleter for Bash {
    fn name(&self) -> &'static str {
        "bash"
    }

    fn is(&self, name: &str) -> bool {
        name == self.name()
    }

    fn write_registration(
        &self,
        variable: &str,
        name: &str,
        program: &str,
        completer: &str,
        script: &mut dyn io::Write,
    ) -> io::Result<()> {
        // Positions in the line are bytes, hence the locale. More is to follow a folder and a disk's `@`.
        writeln!(
            script,
            r#"_{name}() {{
    local LC_ALL=C
    mapfile -t COMPREPLY < <({variable}=bash _KILN_WORD="$2" command {completer} -- "${{COMP_LINE:0:COMP_POINT}}" 2>/dev/null)
    [[ ${{#COMPREPLY[@]}} == 1 && ${{COMPREPLY[0]}} == *[/@=] ]] && compopt -o nospace
}}
complete -o default -F _{name} {program}"#
        )
    }

    fn write_complete(
        &self,
        command: &mut Command,
        words: Vec<OsString>,
        folder: Option<&Path>,
        found: &mut dyn io::Write,
    ) -> io::Result<()> {
        let Some(line) = words.first().and_then(|line| line.to_str()) else { return Ok(()) };
        let typed = Typed::of(line);
        let Some(last) = typed.words.last().cloned() else { return Ok(()) };
        let given = std::env::var("_KILN_WORD").unwrap_or_default();
        let kept = last.strip_suffix(&unquoted(&given)).map_or(0, str::len);
        let index = typed.words.len() - 1;
        let words = typed.words.into_iter().map(OsString::from).collect();
        for candidate in clap_complete::engine::complete(command, words, index, folder)? {
            let value = candidate.get_value().to_string_lossy();
            if let Some(rest) = value.starts_with(&last).then(|| &value[kept..]) {
                let rest = if typed.in_quotes { rest.to_owned() } else { escaped(rest) };
                writeln!(found, "{rest}")?;
            }
        }
        Ok(())
    }
}

/// The words of a shell's question.
pub(super) fn words_of(shell: Option<&str>, words: &[OsString]) -> Vec<OsString> {
    match (shell, words.first().and_then(|line| line.to_str())) {
        (Some("bash"), Some(line)) => {
            Typed::of(line).words.into_iter().map(OsString::from).collect()
        }
        _ => words.to_owned(),
    }
}

/// A line up to the cursor, in words.
#[derive(Debug, PartialEq, Eq)]
struct Typed {
    /// Without their quotes. The last is being typed, and may be empty.
    words: Vec<String>,
    /// The last one's quotes are still open.
    in_quotes: bool,
}

impl Typed {
    fn of(line: &str) -> Typed {
        let mut words = Vec::new();
        let mut word: Option<String> = None;
        let mut quote = None;
        let mut chars = line.chars();
        while let Some(c) = chars.next() {
            match (quote, c) {
                (None, ' ' | '\t' | '\n') => words.extend(word.take()),
                (None, '\'' | '"') => {
                    quote = Some(c);
                    word.get_or_insert_default();
                }
                (Some(open), c) if c == open => quote = None,
                (None | Some('"'), '\\') => word.get_or_insert_default().extend(chars.next()),
                (_, c) => word.get_or_insert_default().push(c),
            }
        }
        words.push(word.unwrap_or_default());
        Typed { words, in_quotes: quote.is_some() }
    }
}

fn unquoted(word: &str) -> String {
    Typed::of(word).words.pop().unwrap_or_default()
}

/// With a backslash before what would mean something to bash.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        if c.is_ascii() && !c.is_ascii_alphanumeric() && !"._-+,@/=:%".contains(c) {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        Typed::of(line).words
    }

    #[test]
    fn a_line_comes_apart_as_in_bash() {
        assert_eq!(words("kiln disk stat ba"), ["kiln", "disk", "stat", "ba"]);
        assert_eq!(words("kiln disk  stat "), ["kiln", "disk", "stat", ""]);
        assert_eq!(words(r#"kiln 'a b' "c \"d" e\ f"#), ["kiln", "a b", "c \"d", "e f"]);
        assert_eq!(
            Typed::of("kiln '' 'a b"),
            Typed { words: vec!["kiln".into(), String::new(), "a b".into()], in_quotes: true }
        );
        assert_eq!(words(""), [""]);
        assert_eq!(words("kiln \\"), ["kiln", ""]);
    }

    #[test]
    fn what_means_something_to_bash_is_escaped() {
        assert_eq!(escaped("a b$(c)/d@e=f"), r"a\ b\$\(c\)/d@e=f");
    }
}
