//! Puts the site on a branch of a git repository, in one commit, for GitHub's or GitLab's pages.
//!
//! All work happens in a throw-away bare repository: no working tree, index or configuration of the user's is
//! touched. Runs that the branch tells of and the folder does not are kept, and the pages over all runs are made from
//! both. If somebody else pushes in between, everything is done again on top of theirs.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use kiln_model::RunId;

use crate::HistoryError;
use crate::site::{self, SiteFile};
use crate::summary::RunSummary;

/// Others may push first so often.
const TRIES: u32 = 5;

/// What a publication did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The commit the branch points at now.
    pub commit: String,
    /// Whether it is a new one; not so if the branch held all of this already.
    pub new: bool,
    /// How many runs the branch tells of.
    pub runs: usize,
}

/// Commits the site in `site` to `branch` of `remote` and pushes it. `remote` is a URL, a path, or the name of a remote
/// of the repository around `from`.
///
/// The commit's author is git's configured one, or `Kiln` where there is none. Nothing is force-pushed.
pub fn publish(
    site: &Path,
    remote: &str,
    branch: &str,
    from: &Path,
) -> Result<Published, HistoryError> {
    let told = site::told_runs(site)?;
    if told.is_empty() {
        return Err(HistoryError::NoSite { path: site.to_owned() });
    }
    let scratch = tempfile::tempdir().map_err(HistoryError::io("create", std::env::temp_dir()))?;
    let git = Git { repository: scratch.path().join("site.git") };
    let url = git.resolve(remote, from)?;
    // The scratch repository sees no repository-local configuration, so the identity is read where the user is.
    let author = git.author(from)?;
    if !git.run(git.outside(from).args(["check-ref-format", "--branch", branch]))?.status.success()
    {
        return Err(HistoryError::Branch { given: branch.to_owned() });
    }
    git.must(
        "create a scratch repository",
        Command::new("git").args(["init", "--quiet", "--bare", "--template="]).arg(&git.repository),
    )?;
    let mut files = git.store_folder(site)?;
    for _ in 0..TRIES {
        let head = git.fetch(&url, branch)?;
        let (tree, runs) = git.merged_tree(head.as_deref(), &told, &mut files)?;
        if let Some(head) = &head
            && git.line(git.inside().args(["rev-parse", &format!("{head}^{{tree}}")]))? == tree
        {
            return Ok(Published { commit: head.clone(), new: false, runs });
        }
        let commit = git.commit(&tree, head.as_deref(), &told, &author)?;
        if git.push(&url, &commit, branch)? {
            return Ok(Published { commit, new: true, runs });
        }
    }
    Err(HistoryError::Outrun { branch: branch.to_owned(), tries: TRIES })
}

#[derive(Debug)]
struct Git {
    repository: PathBuf,
}

/// Paths in the site, and the blob each of them holds.
type Blobs = BTreeMap<String, String>;

impl Git {
    /// A git that runs in the scratch repository.
    fn inside(&self) -> Command {
        let mut git = self.outside(&self.repository);
        git.arg("--git-dir").arg(&self.repository);
        git
    }

    /// A git that runs where the user is.
    fn outside(&self, at: &Path) -> Command {
        let mut git = Command::new("git");
        git.current_dir(at);
        git
    }

    /// Runs git: without questions to a terminal, without a repository from the environment, in English.
    fn run(&self, git: &mut Command) -> Result<Output, HistoryError> {
        prepare(git).stdin(Stdio::null()).output().map_err(|source| HistoryError::NoGit { source })
    }

    fn must(&self, act: &str, git: &mut Command) -> Result<String, HistoryError> {
        let output = self.run(git)?;
        if !output.status.success() {
            return Err(said(act, &output));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn line(&self, git: &mut Command) -> Result<String, HistoryError> {
        Ok(self.must("read the site's branch", git)?.trim().to_owned())
    }

    fn feed(&self, act: &str, git: &mut Command, input: Vec<u8>) -> Result<Vec<u8>, HistoryError> {
        let mut child = prepare(git)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| HistoryError::NoGit { source })?;
        let stdin = child.stdin.take();
        let output = std::thread::scope(|threads| {
            // Beside the reading, or both sides wait for each other when pipes fill up. If git stops
            // reading, its exit status says why.
            threads.spawn(move || stdin.map(|mut stdin| stdin.write_all(&input)));
            child.wait_with_output()
        })
        .map_err(|source| HistoryError::NoGit { source })?;
        if output.status.success() { Ok(output.stdout) } else { Err(said(act, &output)) }
    }

    /// A remote by name becomes its URL; a relative path becomes absolute, for git runs elsewhere.
    fn resolve(&self, remote: &str, from: &Path) -> Result<String, HistoryError> {
        let named =
            self.run(self.outside(from).args(["remote", "get-url", "--push", "--", remote]))?;
        let url = match String::from_utf8(named.stdout) {
            Ok(url) if named.status.success() && !url.trim().is_empty() => url.trim().to_owned(),
            _ => remote.to_owned(),
        };
        if url.starts_with('-') {
            return Err(HistoryError::Git {
                act: format!("publish to {url:?}"),
                said: "that is an option, not a repository".into(),
            });
        }
        let path = from.join(&url);
        Ok(match path.canonicalize() {
            Ok(path) => path.to_string_lossy().into_owned(),
            Err(_) => url,
        })
    }

    /// Name and address for the commit: what git would use, if it would use anything.
    fn author(&self, from: &Path) -> Result<(String, String), HistoryError> {
        let value = |variable: &str, key: &str| -> Result<Option<String>, HistoryError> {
            if let Ok(value) = std::env::var(variable)
                && !value.trim().is_empty()
            {
                return Ok(Some(value));
            }
            let output = self.run(self.outside(from).args(["config", "--get", key]))?;
            let value = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            Ok(Some(value).filter(|value| output.status.success() && !value.is_empty()))
        };
        let name = value("GIT_AUTHOR_NAME", "user.name")?;
        let email = value("GIT_AUTHOR_EMAIL", "user.email")?;
        Ok(match (name, email) {
            (Some(name), Some(email)) => (name, email),
            _ => ("Kiln".into(), "kiln@localhost".into()),
        })
    }

    /// Stores every file of the folder; returns its blobs by path.
    fn store_folder(&self, site: &Path) -> Result<Blobs, HistoryError> {
        let site = site.canonicalize().map_err(HistoryError::io("read", site))?;
        let mut paths = Vec::new();
        list(&site, "", &mut paths)?;
        let mut input = Vec::new();
        for path in &paths {
            // Quoted as git wants it, so that any name of the folder above will do.
            let absolute = site.join(path);
            input.extend(quoted(absolute.as_os_str()));
            input.push(b'\n');
        }
        let ids = self.feed(
            "store the site",
            self.inside().args(["hash-object", "-w", "--no-filters", "--stdin-paths"]),
            input,
        )?;
        let ids = String::from_utf8_lossy(&ids);
        Ok(paths.into_iter().zip(ids.lines().map(str::to_owned)).collect())
    }

    /// The branch as it is at the remote; none if it does not exist there yet.
    fn fetch(&self, url: &str, branch: &str) -> Result<Option<String>, HistoryError> {
        let name = format!("refs/heads/{branch}");
        let act = format!("read branch {branch} of {}", without_secrets(url));
        let listed = self.must(&act, self.inside().args(["ls-remote", "--", url, &name]))?;
        if !listed.lines().any(|line| line.ends_with(&format!("\t{name}"))) {
            return Ok(None);
        }
        let spec = format!("+{name}:refs/kiln/remote");
        self.must(
            &act,
            self.inside().args(["fetch", "--quiet", "--no-tags", "--depth=1", "--", url, &spec]),
        )?;
        self.line(self.inside().args(["rev-parse", "refs/kiln/remote"])).map(Some)
    }

    /// The tree of the folder on top of what the branch holds, and how many runs that tells of.
    fn merged_tree(
        &self,
        head: Option<&str>,
        local: &[RunSummary],
        files: &mut Blobs,
    ) -> Result<(String, usize), HistoryError> {
        let mut runs: BTreeMap<RunId, RunSummary> = BTreeMap::new();
        let mut kept = Blobs::new();
        if let Some(head) = head {
            let listed = self.must(
                "list the site's branch",
                self.inside().args(["ls-tree", "-r", "-z", "--full-tree", head]),
            )?;
            for entry in listed.split('\0') {
                // `mode type id<TAB>path`; a submodule has no blob and is left alone by leaving it out.
                if let Some((what, path)) = entry.split_once('\t')
                    && let [_, "blob", id] = what.split(' ').collect::<Vec<_>>()[..]
                {
                    kept.insert(path.to_owned(), id.to_owned());
                }
            }
            runs.extend(self.told(&kept)?);
        }
        runs.extend(local.iter().map(|run| (run.id.clone(), run.clone())));
        // A run of the folder replaces the branch's whole: no page of an older form stays beside it.
        let replaced: HashMap<String, ()> =
            local.iter().map(|run| (format!("runs/{}/", run.id), ())).collect();
        kept.retain(|path, _| {
            let folder = path.match_indices('/').nth(1).map(|(at, _)| &path[..=at]);
            !folder.is_some_and(|folder| replaced.contains_key(folder))
        });
        let all: Vec<RunSummary> = runs.into_values().collect();
        for file in site::front_pages(&all) {
            let id = self.store(&file)?;
            files.insert(file.path, id);
        }
        kept.extend(files.iter().map(|(path, id)| (path.clone(), id.clone())));
        let mut info = Vec::new();
        for (path, id) in &kept {
            write!(info, "100644 {id}\t{path}\0").map_err(HistoryError::io("list", path))?;
        }
        // What a try before this one left behind must not stay in.
        let index = self.repository.join("index");
        match fs::remove_file(&index) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(HistoryError::Io { act: "remove", path: index, source: error });
            }
            _ => {}
        }
        self.feed(
            "list the site",
            self.inside().args(["update-index", "-z", "--index-info"]),
            info,
        )?;
        Ok((self.line(self.inside().arg("write-tree"))?, all.len()))
    }

    /// The runs whose `run.json` is among these blobs.
    fn told(&self, blobs: &Blobs) -> Result<Vec<(RunId, RunSummary)>, HistoryError> {
        let mut wanted = Vec::new();
        for (path, id) in blobs {
            if let ["runs", run, "run.json"] = path.split('/').collect::<Vec<_>>()[..]
                && let Ok(run) = run.parse::<RunId>()
            {
                wanted.push((run, id));
            }
        }
        let input: String = wanted.iter().map(|(_, id)| format!("{id}\n")).collect();
        let output = self.feed(
            "read the branch's runs",
            self.inside().args(["cat-file", "--batch"]),
            input.into_bytes(),
        )?;
        let mut rest = &output[..];
        let mut runs = Vec::new();
        for (run, _) in wanted {
            let Some(bytes) = next_object(&mut rest) else { break };
            // A run.json of another program or a later Kiln is kept as a file, but not told of.
            if let Some(told) = site::parse_run_json(bytes)
                && told.id == run
            {
                runs.push((run, told));
            }
        }
        Ok(runs)
    }

    fn store(&self, file: &SiteFile) -> Result<String, HistoryError> {
        let id = self.feed(
            "store the site",
            self.inside().args(["hash-object", "-w", "--no-filters", "--stdin"]),
            file.bytes.clone(),
        )?;
        Ok(String::from_utf8_lossy(&id).trim().to_owned())
    }

    fn commit(
        &self,
        tree: &str,
        parent: Option<&str>,
        told: &[RunSummary],
        (name, email): &(String, String),
    ) -> Result<String, HistoryError> {
        let message = match told.last() {
            Some(run) => format!("kiln: {} {} ({})", run.scenario, run.word(), run.id),
            None => "kiln".to_owned(),
        };
        let mut commit = self.inside();
        commit.args(["commit-tree", tree, "-m", &kiln_model::hostile::one_line(&message, 200)]);
        if let Some(parent) = parent {
            commit.args(["-p", parent]);
        }
        for (variable, value) in [
            ("GIT_AUTHOR_NAME", name),
            ("GIT_COMMITTER_NAME", name),
            ("GIT_AUTHOR_EMAIL", email),
            ("GIT_COMMITTER_EMAIL", email),
        ] {
            commit.env(variable, value);
        }
        self.line(&mut commit)
    }

    /// Whether the branch took the commit; not so if it has moved since it was fetched.
    fn push(&self, url: &str, commit: &str, branch: &str) -> Result<bool, HistoryError> {
        let spec = format!("{commit}:refs/heads/{branch}");
        let output = self.run(self.inside().args(["push", "--porcelain", "--", url, &spec]))?;
        if output.status.success() {
            return Ok(true);
        }
        let all = [&output.stdout[..], &output.stderr[..]].concat();
        let all = String::from_utf8_lossy(&all);
        // What git says when the other side is ahead, or is being updated at this moment.
        let outrun = ["[rejected]", "fetch first", "non-fast-forward", "cannot lock ref"];
        if outrun.iter().any(|sign| all.contains(sign)) {
            return Ok(false);
        }
        Err(said(&format!("push to {}", without_secrets(url)), &output))
    }
}

/// One object of `cat-file --batch`: `id type size`, newline, bytes, newline.
fn next_object<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let newline = rest.iter().position(|&byte| byte == b'\n')?;
    let header = std::str::from_utf8(&rest[..newline]).ok()?;
    let size: usize = header.rsplit(' ').next()?.parse().ok()?;
    let bytes = rest.get(newline + 1..newline + 1 + size)?;
    *rest = rest.get(newline + 2 + size..)?;
    Some(bytes)
}

fn prepare(git: &mut Command) -> &mut Command {
    for variable in [
        "GIT_DIR",
        "GIT_WORK_TREE",
        "GIT_INDEX_FILE",
        "GIT_OBJECT_DIRECTORY",
        "GIT_ALTERNATE_OBJECT_DIRECTORIES",
        "GIT_COMMON_DIR",
        "GIT_NAMESPACE",
        "GIT_PREFIX",
    ] {
        git.env_remove(variable);
    }
    git.env("GIT_TERMINAL_PROMPT", "0").env("LC_ALL", "C")
}

fn said(act: &str, output: &Output) -> HistoryError {
    let text = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = &lines[lines.len().saturating_sub(4)..];
    let said = match last {
        [] => format!("nothing, {}", output.status),
        lines => kiln_model::hostile::one_line(&without_secrets(&lines.join("; ")), 800),
    };
    HistoryError::Git { act: act.to_owned(), said }
}

/// Takes passwords out of URLs (`https://user:secret@host`) before they are shown.
fn without_secrets(text: &str) -> String {
    let mut shown = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        shown.push_str(before);
        let host = after.find(['/', ' ', '\'', '"']).unwrap_or(after.len());
        match after[..host].rfind('@') {
            Some(end) => {
                shown.push_str("***");
                rest = &after[end..];
            }
            None => rest = after,
        }
    }
    shown.push_str(rest);
    shown
}

/// Every regular file below a folder, relative to it.
fn list(root: &Path, below: &str, paths: &mut Vec<String>) -> Result<(), HistoryError> {
    let folder = root.join(below);
    for entry in fs::read_dir(&folder).map_err(HistoryError::io("list", &folder))? {
        let entry = entry.map_err(HistoryError::io("list", &folder))?;
        let kind = entry.file_type().map_err(HistoryError::io("read", entry.path()))?;
        // The site's own names are all plain; anything else here is not the site's.
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
        if name == ".git" || name.ends_with(".new") {
            continue;
        }
        let path = if below.is_empty() { name } else { format!("{below}/{name}") };
        if kind.is_dir() {
            list(root, &path, paths)?;
        } else if kind.is_file() && !path.contains('\n') {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(())
}

/// A path in double quotes, in C's way, as `--stdin-paths` reads it.
fn quoted(path: &OsStr) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt;
    let mut out = vec![b'"'];
    for &byte in path.as_bytes() {
        match byte {
            b'"' | b'\\' => out.extend([b'\\', byte]),
            b' '..=b'~' => out.push(byte),
            _ => out.extend(format!("\\{byte:03o}").bytes()),
        }
    }
    out.push(b'"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_in_a_url_is_never_shown() {
        assert_eq!(
            without_secrets("fatal: https://me:s3cret@host/x.git not found, see http://a/b@c"),
            "fatal: https://***@host/x.git not found, see http://a/b@c"
        );
    }

    #[test]
    fn a_path_is_quoted_as_git_reads_it() {
        assert_eq!(quoted(OsStr::new("/a \"b\\ä")), br#""/a \"b\\\303\244""#);
    }
}
