//! Names that several packages can stand behind (`update-alternatives(1)`): no package's list has the links that lead from
//! `/usr/bin/awk` to the one that was chosen.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

/// Links from a name to the file that was chosen, and which names there are.
pub(super) const FOLDERS: [&str; 2] = ["etc/alternatives", "var/lib/dpkg/alternatives"];
/// A description is no longer.
const LONGEST: u64 = 1 << 20;

/// The links by which these files were chosen. What cannot be read is no link.
pub(super) fn links(root: &Path, files: &BTreeSet<PathBuf>) -> Vec<PathBuf> {
    let [chosen, described] = FOLDERS.map(|folder| root.join(folder));
    let public = public_links(&described);
    let mut links = BTreeSet::new();
    for entry in fs::read_dir(chosen).into_iter().flatten().flatten() {
        let leads_here =
            fs::read_link(entry.path()).is_ok_and(|target| files.contains(target.as_path()));
        let Ok(name) = entry.file_name().into_string() else { continue };
        if leads_here {
            links.extend(public.get(&name).cloned());
            links.insert(Path::new("/").join(FOLDERS[0]).join(name));
        }
    }
    links.into_iter().collect()
}

/// Where each name is found by programs.
fn public_links(described: &Path) -> HashMap<String, PathBuf> {
    let mut links = HashMap::new();
    for entry in fs::read_dir(described).into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let is_small = entry.metadata().is_ok_and(|meta| meta.is_file() && meta.len() <= LONGEST);
        let Some(text) = is_small.then(|| fs::read_to_string(entry.path()).ok()).flatten() else {
            continue;
        };
        // Automatic or manual; the link; then names that follow this one, each with its link; then an empty line.
        let mut lines = text.lines().skip(1);
        links.extend(lines.next().map(|link| (name, PathBuf::from(link))));
        let lines: Vec<&str> = lines.take_while(|line| !line.is_empty()).collect();
        for follower in lines.chunks_exact(2) {
            links.insert(follower[0].to_owned(), PathBuf::from(follower[1]));
        }
    }
    links.retain(|_, link| link.is_absolute());
    links
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_name_that_was_chosen_for_a_file_leads_to_it() {
        let root = tempfile::tempdir().unwrap();
        let [chosen, described] = FOLDERS.map(|folder| root.path().join(folder));
        for folder in [&chosen, &described] {
            fs::create_dir_all(folder).unwrap();
        }
        let text = "auto\n/usr/bin/awk\nawk.1\n/usr/share/man/man1/awk.1\n\n/usr/bin/mawk\n5\n";
        fs::write(described.join("awk"), text).unwrap();
        fs::write(described.join("vi"), "auto\n/usr/bin/vi\n\n/usr/bin/vim\n9\n").unwrap();
        fs::write(described.join("odd"), "auto").unwrap();
        for (name, target) in [
            ("awk", "/usr/bin/mawk"),
            ("awk.1", "/usr/share/man/man1/mawk.1"),
            ("vi", "/usr/bin/vim"),
        ] {
            symlink(target, chosen.join(name)).unwrap();
        }
        let files = ["/usr/bin/mawk", "/usr/share/man/man1/mawk.1"].map(PathBuf::from).into();
        let found = links(root.path(), &files);
        let expected = [
            "/etc/alternatives/awk",
            "/etc/alternatives/awk.1",
            "/usr/bin/awk",
            "/usr/share/man/man1/awk.1",
        ];
        assert_eq!(found, expected.map(PathBuf::from));
        assert!(links(Path::new("/nowhere"), &files).is_empty());
    }
}
