//! Completion on a command line: commands and flags, and the names of disks and snapshots.
//!
//! What `kiln completions` prints makes a shell start this program again, with `KILN_COMPLETE` in its environment,
//! whenever somebody presses the key. It must be quick and silent, and stand in nobody's way.

mod bash;

use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Arg, Command, CommandFactory as _};
use clap_complete::Shell;
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use clap_complete::env::{Elvish, EnvCompleter, Fish, Powershell, Zsh};
use kiln_model::scenario::TimeLimit;

use self::bash::Bash;
use crate::arguments::Arguments;
use crate::home::Home;

/// Names the shell that asks.
const VARIABLE: &str = "KILN_COMPLETE";
/// Says how long to look for names.
const PATIENCE_VARIABLE: &str = "KILN_COMPLETE_PATIENCE";
/// Longer, and whoever pressed the key would wonder.
const PATIENCE: Duration = Duration::from_millis(500);
/// More names help nobody.
const MOST: usize = 1000;
/// Commands of `kiln disk` whose `NAME` is a new one.
const NEW: &[&str] = &["create", "import", "receive"];

/// The script that a shell has to read.
pub(crate) fn script(shell: Shell) -> std::io::Result<Vec<u8>> {
    let mut script = Vec::new();
    let completer: &dyn EnvCompleter = match shell {
        Shell::Zsh => &Zsh,
        Shell::Fish => &Fish,
        Shell::Elvish => &Elvish,
        Shell::PowerShell => &Powershell,
        _ => &Bash,
    };
    completer.write_registration(VARIABLE, "kiln", "kiln", "kiln", &mut script)?;
    if shell == Shell::Zsh {
        // In a folder of functions, the file is the function, and the first call is one already.
        script.extend_from_slice(
            b"[ \"$funcstack[1]\" = _kiln ] && _clap_dynamic_completer_kiln \"$@\"\n",
        );
    }
    Ok(script)
}

/// Answers a shell, if one asks.
pub(crate) fn take_over() -> Option<ExitCode> {
    let shell = std::env::var_os(VARIABLE)?;
    let completers: [&dyn EnvCompleter; 5] = [&Bash, &Zsh, &Fish, &Elvish, &Powershell];
    let completer = completers.into_iter().find(|shell_of| shell.to_str() == Some(shell_of.name()));
    let Some(completer) = completer else { return Some(ExitCode::from(2)) };
    // Nobody wants to read a complaint in the middle of a command.
    std::panic::set_hook(Box::new(|_| {}));
    let words = std::env::args_os().skip_while(|word| word != "--").skip(1);
    let words: Vec<OsString> = words.collect();
    let mut found = Vec::new();
    let folder = std::env::current_dir().ok();
    let typed = bash::words_of(shell.to_str(), &words);
    let written =
        completer.write_complete(&mut command(&typed), words, folder.as_deref(), &mut found);
    let told = written.and_then(|()| std::io::stdout().write_all(&found));
    Some(if told.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The command, whose arguments know the names in the pool that was typed.
fn command(words: &[OsString]) -> Command {
    let pool = Arc::new(pool(words));
    Arguments::command().mut_subcommand("disk", |disk| {
        disk.mut_subcommands(|command| {
            let new = NEW.contains(&command.get_name());
            command.mut_args(|arg| match kind(&arg) {
                Some(Kind::Disk) if new => arg,
                Some(kind) => {
                    let pool = Arc::clone(&pool);
                    let complete =
                        move |typed: &OsStr| candidates(pool.as_ref().as_ref(), kind, typed);
                    arg.add(ArgValueCompleter::new(complete))
                }
                None => arg,
            })
        })
    })
}

/// What a value may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Disk,
    Snapshot,
    Either,
}

fn kind(arg: &Arg) -> Option<Kind> {
    match arg.get_value_names()?.first()?.as_str() {
        "NAME" => Some(Kind::Disk),
        "NAME@SNAP" => Some(Kind::Snapshot),
        "NAME[@SNAP]" | "FROM" | "TO" => Some(Kind::Either),
        _ => None,
    }
}

/// The pool that is meant, as far as it was typed.
fn pool(words: &[OsString]) -> Option<PathBuf> {
    let mut chosen = None;
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.to_str() {
            Some("--pool") => chosen = words.next().map(PathBuf::from),
            Some(word) => chosen = word.strip_prefix("--pool=").map(PathBuf::from).or(chosen),
            None => {}
        }
    }
    // The shell has not done this yet.
    let at_home = |path: &PathBuf| {
        let rest = path.strip_prefix("~").ok()?;
        std::env::var_os("HOME").map(|home| PathBuf::from(home).join(rest))
    };
    match chosen {
        Some(path) => Some(at_home(&path).unwrap_or(path)),
        None => Home::find().ok().map(|home| home.data().join("disks.pool")),
    }
}

fn candidates(pool: Option<&PathBuf>, kind: Kind, typed: &OsStr) -> Vec<CompletionCandidate> {
    let (Some(pool), Some(typed)) = (pool, typed.to_str()) else { return Vec::new() };
    if kind == Kind::Disk && typed.contains('@') {
        return Vec::new();
    }
    let wanted = std::env::var(PATIENCE_VARIABLE).ok();
    let wanted = wanted.and_then(|text| text.parse::<TimeLimit>().ok());
    let mut names = kiln_store::glance(pool, typed, wanted.map_or(PATIENCE, TimeLimit::get));
    names.retain(|name| harmless(name));
    names.truncate(MOST);
    // A snapshot is meant, and its disk is only the beginning of its name.
    if kind == Kind::Snapshot && !typed.contains('@') {
        names.iter_mut().for_each(|name| name.push('@'));
    }
    names.into_iter().map(CompletionCandidate::new).collect()
}

/// Whether a name means nothing but itself to every shell, and no flag to us. Others have to be typed: what a shell
/// is given here goes into somebody's command line.
fn harmless(name: &str) -> bool {
    !name.starts_with(['-', '.', '@'])
        && name.chars().all(|c| c.is_alphanumeric() || "._-+,@".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_a_disk_can_be_completed_and_no_new_one() {
        let mut known = Vec::new();
        for command in Arguments::command().find_subcommand("disk").unwrap().get_subcommands() {
            for arg in command.get_arguments() {
                if let Some(kind) = kind(arg) {
                    known.push(format!("{} {} {kind:?}", command.get_name(), arg.get_id()));
                }
            }
        }
        for expected in [
            "snap name Disk",
            "clone snapshot Snapshot",
            "rollback snapshot Snapshot",
            "diff from Either",
            "diff to Either",
            "rm names Either",
            "serve names Either",
            "export name Either",
        ] {
            assert!(known.iter().any(|known| known == expected), "{expected}: {known:#?}");
        }
        // Building it finds an argument that is not there.
        command(&[]).debug_assert();
    }

    #[test]
    fn the_pool_is_the_one_that_was_typed() {
        let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert_eq!(pool(&words("kiln disk --pool /a stat")), Some("/a".into()));
        assert_eq!(pool(&words("kiln disk --pool=/a stat --pool=/b ")), Some("/b".into()));
    }

    #[test]
    fn a_name_that_a_shell_could_misread_is_not_offered() {
        for name in ["base", "base@monday-1.2+x", "größe", "漢字"] {
            assert!(harmless(name), "{name}");
        }
        for name in [
            "a b",
            "$(reboot)",
            "`x`",
            "a;b",
            "a'b",
            "a\"b",
            "-rf",
            "*",
            "a\\b",
            "~a",
            "!x",
            "@a",
            ".a",
        ] {
            assert!(!harmless(name), "{name}");
        }
    }
}
