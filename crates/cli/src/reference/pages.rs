//! The generated pages, and what holds them: `docs/cli.md` and the tables of `docs/configuration.md`.

use std::fmt::Write as _;
use std::path::Path;

use clap::{Command, CommandFactory as _};

use super::command;
use crate::arguments::Arguments;
use crate::config::keys::{KEYS, OTHER_VARIABLES};

/// Columns of help in the reference.
const WIDTH: usize = 100;

/// `docs/cli.md`.
pub(crate) fn markdown() -> String {
    let mut page = String::from(
        "# Commands\n\nThis page is made from the program's own help: `KILN_UPDATE=1 cargo test -p kiln-cli` writes it \
         anew, and a test fails when it is out of date.\n\n",
    );
    let mut root = command().term_width(WIDTH);
    // `help` has no section: it only leads to the others'.
    let described = |command: &&Command| !command.is_hide_set() && command.get_name() != "help";
    for command in root.get_subcommands().filter(described) {
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        let name = command.get_name();
        let _infallible = writeln!(page, "- [`kiln {name}`](#kiln-{name}): {about}");
    }
    page.push('\n');
    section(&mut page, &mut root, "kiln");
    page
}

fn section(page: &mut String, command: &mut Command, path: &str) {
    let level = 1 + path.split(' ').count().min(3);
    let help = command.clone().bin_name(path).term_width(WIDTH).render_long_help().to_string();
    let help: Vec<&str> = help.lines().map(str::trim_end).collect();
    let (heading, help) = ("#".repeat(level), help.join("\n"));
    let _infallible = writeln!(page, "{heading} `{path}`\n\n```text\n{}\n```\n", help.trim());
    for child in command.get_subcommands_mut() {
        if child.get_name() != "help" && !child.is_hide_set() {
            let path = format!("{path} {}", child.get_name());
            section(page, child, &path);
        }
    }
}

/// The table of keys in `docs/configuration.md`.
pub(crate) fn key_table() -> String {
    let mut table = String::from(
        "| key | value | default | variable | flag | meaning |\n|---|---|---|---|---|---|\n",
    );
    for key in KEYS {
        let code = |text: Option<&str>| text.map_or(String::new(), |text| format!("`{text}`"));
        let _infallible = writeln!(
            table,
            "| `{}` | {} | {} | `{}` | {} | {} |",
            key.name,
            key.kind.describe(),
            code(key.default),
            key.variable,
            code(key.flag),
            key.about
        );
    }
    table
}

/// The table of other variables in `docs/configuration.md`.
pub(crate) fn variable_table() -> String {
    let mut table = String::from("| variable | meaning |\n|---|---|\n");
    for (name, about) in OTHER_VARIABLES {
        let _infallible = writeln!(table, "| `{name}` | {about} |");
    }
    table
}

/// Compares a page with what it should be, or writes it when asked to.
fn hold(page: &str, expected: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(page);
    if std::env::var_os("KILN_UPDATE").is_some() {
        std::fs::write(&path, expected).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = written.lines().zip(expected.lines()).position(|(a, b)| a != b);
    assert!(
        written == expected,
        "docs/{page} is out of date (line {}): run `KILN_UPDATE=1 cargo test -p kiln-cli`",
        differs.unwrap_or(0) + 1
    );
}

#[test]
fn the_command_reference_is_what_the_program_says() {
    hold("cli.md", &markdown());
}

#[test]
fn the_configuration_page_has_every_key_and_variable() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/configuration.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let mut expected = page.clone();
    for (name, table) in [("keys", key_table()), ("variables", variable_table())] {
        let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- end of {name} -->"));
        let from = expected.find(&begin).expect("the page marks its tables") + begin.len();
        let to = expected.find(&end).expect("the page marks its tables");
        expected.replace_range(from..to, &table);
    }
    hold("configuration.md", &expected);
}

#[test]
fn every_command_has_an_example_and_no_first_line_ends_with_a_full_stop() {
    fn check(command: &Command, path: &str) {
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        assert!(!about.is_empty() && !about.ends_with('.'), "{path}: {about:?}");
        if command.get_subcommands().next().is_none() {
            let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(after.contains("Examples:\n  "), "{path} has no example");
        }
        for child in command.get_subcommands().filter(|child| child.get_name() != "help") {
            check(child, &format!("{path} {}", child.get_name()));
        }
    }
    check(&command(), "kiln");
}

#[test]
fn arguments_are_consistent() {
    Arguments::command().debug_assert();
}

/// An example that does not parse is worse than none.
#[test]
fn every_example_parses() {
    fn examples(command: &Command, into: &mut Vec<String>) {
        let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let lines = after.lines().filter_map(|line| line.strip_prefix("  "));
        into.extend(lines.filter(|line| line.contains("kiln ")).map(str::to_owned));
        command.get_subcommands().for_each(|child| examples(child, into));
    }
    let mut all = Vec::new();
    examples(&command(), &mut all);
    assert!(all.len() > 20);
    for example in all {
        // From the first `kiln` up to the first thing that is the shell's business.
        let words = example.split_ascii_whitespace().skip_while(|word| *word != "kiln");
        let words = words.take_while(|word| !matches!(*word, "|" | ">" | "#"));
        let mut words: Vec<&str> = words.collect();
        let end =
            words.iter().position(|word| word.ends_with(';')).map_or(words.len(), |at| at + 1);
        words.truncate(end);
        let words = words.iter().map(|word| word.trim_end_matches(';').trim_matches('\''));
        use clap::Parser as _;
        let parsed = Arguments::try_parse_from(words);
        assert!(parsed.is_ok(), "{example}: {}", parsed.unwrap_err());
    }
}
