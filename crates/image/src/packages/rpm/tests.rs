//! A system with RPM, made by rpm itself. `script/bootstrap --with-tests` installs what this needs.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use super::*;

/// A tool, what it needs by name, by a name that is provided, and by a file; and something that nobody needs.
const SPEC: &str = r#"
Name: kiln-tool
Version: 1.5
Release: 2
Summary: A tool
License: none
BuildArch: noarch
AutoReqProv: no
Requires: kiln-library >= 3
Requires: kiln-virtual
Requires: /usr/share/kiln/table
Requires: kiln-gone
%description
%package -n kiln-library
Summary: A library
Version: 3.1
%description -n kiln-library
%package -n kiln-provider
Summary: A provider
Provides: kiln-virtual = 7
%description -n kiln-provider
%package -n kiln-data
Summary: Data
%description -n kiln-data
%package -n kiln-other
Summary: Something else
%description -n kiln-other
%prep
%build
%install
for file in usr/bin/tool etc/tool.conf var/log/tool.log usr/lib/library usr/lib/provider usr/share/kiln/table usr/other; do
    mkdir -p "%{buildroot}/$(dirname $file)"
    echo "$file" >"%{buildroot}/$file"
done
%files
/usr/bin/tool
%config(noreplace) /etc/tool.conf
%ghost /var/log/tool.log
%files -n kiln-library
/usr/lib/library
%files -n kiln-provider
/usr/lib/provider
%files -n kiln-data
/usr/share/kiln/table
%files -n kiln-other
/usr/other
"#;

fn run(program: &str, home: &Path, arguments: &[&str]) -> (bool, String) {
    let mut command = Command::new(program);
    command.args(arguments).env("HOME", home).env("LC_ALL", "C").stdin(Stdio::null());
    let output = command.output();
    let output =
        output.unwrap_or_else(|_| panic!("{program} is needed: run script/bootstrap --with-tests"));
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// A system below a folder, on which the packages of the specification are installed.
fn system(folder: &Path) -> std::path::PathBuf {
    let root = folder.join("root");
    let database = root.join(DATABASES[0]);
    fs::create_dir_all(&database).unwrap();
    let spec = folder.join("tool.spec");
    fs::write(&spec, SPEC).unwrap();
    let define = format!("_topdir {}/build", folder.display());
    let (built, said) = run(
        "rpmbuild",
        folder,
        &[
            "-bb",
            "--quiet",
            "--define",
            &define,
            "--define",
            "debug_package %{nil}",
            spec.to_str().unwrap(),
        ],
    );
    assert!(built, "{said}");
    let packages = folder.join("build/RPMS/noarch");
    let mut packages: Vec<String> = fs::read_dir(packages)
        .unwrap()
        .map(|entry| entry.unwrap().path().to_str().unwrap().to_owned())
        .collect();
    packages.sort();
    let database = database.to_str().unwrap();
    let mut arguments = vec!["--dbpath", database, "-i", "--justdb", "--nodeps", "--nosignature"];
    arguments.extend(packages.iter().map(String::as_str));
    let (mut installed, mut said) = run("rpm", folder, &arguments);
    if !installed && said.contains("--force-debian") {
        // There it says so where other packages are the system's.
        arguments.insert(0, "--force-debian");
        (installed, said) = run("rpm", folder, &arguments);
    }
    assert!(installed, "{said}");
    root
}

#[test]
fn packages_of_rpm_come_with_what_they_need_by_name_by_provided_name_and_by_file() {
    let folder = tempfile::tempdir().unwrap();
    let root = system(folder.path());
    let rpm = Rpm::read(&root).unwrap();
    assert!(rpm.has("kiln-tool") && rpm.has("kiln-virtual") && !rpm.has("kiln-gone"));
    let closure = rpm.closure(["kiln-tool"]).unwrap();
    let packages: Vec<String> =
        closure.packages.iter().map(|(name, version)| format!("{name} {version}")).collect();
    let expected =
        ["kiln-data 1.5-2", "kiln-library 3.1-2", "kiln-provider 1.5-2", "kiln-tool 1.5-2"];
    assert_eq!(packages, expected);
    let files: Vec<&str> = closure.files.iter().map(|path| path.to_str().unwrap()).collect();
    let expected = [
        "/etc/tool.conf",
        "/usr/bin/tool",
        "/usr/lib/library",
        "/usr/lib/provider",
        "/usr/share/kiln/table",
    ];
    assert_eq!(files, expected, "what is only owned is not there");
    let config: Vec<_> = closure.config.iter().collect();
    assert_eq!(config, [(&PathBuf::from("/etc/tool.conf"), &"kiln-tool".to_owned())]);
    assert_eq!(closure.notes, ["kiln-tool needs kiln-gone, not installed"]);
    let by_provided = rpm.closure(["kiln-virtual"]).unwrap();
    assert_eq!(by_provided.packages, [("kiln-provider".to_owned(), "1.5-2".to_owned())]);
    let error = rpm.closure(["kiln-tol"]).unwrap_err().to_string();
    assert_eq!(error, "package kiln-tol is not installed; kiln-tool is");

    // The same way from a manifest to a disk, on a system that is not this one.
    for file in expected {
        let path = root.join(&file[1..]);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, file).unwrap();
    }
    let base = crate::base::Base {
        packages: vec![crate::manifest::Wanted::written("kiln-tool")],
        exclude: vec!["/etc".to_owned()],
        ..crate::base::Base::default()
    };
    let inventory = base.tree(&root).unwrap().into_inventory().unwrap();
    let names: Vec<String> = inventory.entries().map(|(path, _)| path.to_string()).collect();
    assert!(names.contains(&"/usr/share/kiln/table".to_owned()), "{names:?}");
    assert!(!names.contains(&"/etc/tool.conf".to_owned()), "{names:?}");
}

#[test]
fn a_damaged_database_is_an_error_that_says_what_rpm_said() {
    let root = tempfile::tempdir().unwrap();
    let database = root.path().join(DATABASES[0]);
    fs::create_dir_all(&database).unwrap();
    fs::write(database.join("rpmdb.sqlite"), "no database").unwrap();
    let error = Rpm::read(root.path()).unwrap_err().to_string();
    assert!(error.starts_with("rpm failed: "), "{error}");
}
