//! The configuration from the outside.

use crate::kiln::{Kiln, ended};

#[test]
fn every_value_names_its_origin_and_the_stronger_word_wins() {
    let kiln = Kiln::new();
    kiln.write("home/config.toml", "[vm]\nmemory = \"1G\"\ncpus = 2\n");
    kiln.write(
        "kiln.toml",
        "# the project\n[vm]\nmemory = \"2G\"\n\n[run]\nkernel = \"./linux\"\n",
    );
    let mut command = kiln.command(&["config", "show", "--origin", "--format", "json"]);
    let shown = ended(command.env("KILN_HANG_TIMEOUT", "90s")).exits(0).json();
    let folder = kiln.folder().canonicalize().unwrap();
    let origin = |key: &str| shown[key]["origin"].as_str().unwrap_or("none").to_owned();
    assert_eq!(shown["vm.memory"]["value"], "2G");
    assert_eq!(origin("vm.memory"), format!("{}:3", folder.join("kiln.toml").display()));
    assert_eq!(shown["vm.cpus"]["value"], "2");
    assert_eq!(origin("vm.cpus"), format!("{}:3", kiln.home().join("config.toml").display()));
    assert_eq!(shown["run.kernel"]["value"], folder.join("linux").to_str().unwrap());
    assert_eq!(origin("vm.hang_timeout"), "$KILN_HANG_TIMEOUT");
    assert_eq!(origin("output.format"), "--format");
    assert_eq!(origin("publish.branch"), "default");
    assert_eq!(shown["vm.qemu"]["origin"], serde_json::Value::Null);
}

#[test]
fn what_config_show_prints_can_be_pasted_into_a_file() {
    let kiln = Kiln::new();
    kiln.write("kiln.toml", "[vm]\nkernel_parameters = [\"a=\\\"b\\\"\", \"c\"]\n");
    let shown = kiln.run(&["config", "show", "--origin"]).exits(0).stdout;
    kiln.write("home/config.toml", &shown);
    std::fs::remove_file(kiln.folder().join("kiln.toml")).unwrap();
    let again = kiln.run(&["config", "show"]).exits(0).stdout;
    assert!(again.contains(r#"kernel_parameters = ['a="b"', "c"]"#), "{again}");
}

#[test]
fn an_unknown_key_is_refused_with_its_line_and_its_neighbour() {
    let kiln = Kiln::new();
    kiln.write("kiln.toml", "[vm]\n\nmemroy = \"2G\"\n");
    kiln.run(&["runs"])
        .exits(2)
        .complains(&["kiln.toml:3: unknown key `vm.memroy`; did you mean `vm.memory`?", "hint: "]);
}

#[test]
fn a_wrong_value_is_refused_wherever_it_was_said() {
    let kiln = Kiln::new();
    let mut command = kiln.command(&["runs"]);
    ended(command.env("KILN_ACCELERATION", "kmv"))
        .exits(2)
        .complains(&["$KILN_ACCELERATION", "did you mean kvm?"]);
    kiln.run(&["plan", "simple-example", "--memory", "lots"])
        .exits(2)
        .complains(&["--memory", "`vm.memory`"]);
    kiln.run(&["--config", "nowhere.toml", "runs"])
        .exits(2)
        .complains(&["nowhere.toml is not there"]);
}

#[test]
fn a_misspelt_variable_is_named_but_stops_nothing() {
    let kiln = Kiln::new();
    let mut command = kiln.command(&["runs"]);
    ended(command.env("KILN_MEMROY", "2G"))
        .exits(0)
        .complains(&["$KILN_MEMROY is not a variable of Kiln's; did you mean KILN_MEMORY?"]);
    let mut command = kiln.command(&["runs"]);
    let said = ended(command.env("KILN_MEMORY", "")).exits(0);
    assert!(!said.stderr.contains("KILN_MEMORY"), "{}", said.stderr);
}

#[test]
fn the_schema_allows_no_unknown_key() {
    let schema = Kiln::new().run(&["config", "schema"]).exits(0).json();
    assert_eq!(schema["additionalProperties"], false);
    assert_eq!(schema["properties"]["vm"]["additionalProperties"], false);
    assert_eq!(schema["properties"]["vm"]["properties"]["cpus"]["maximum"], 64);
}

#[test]
fn config_path_names_the_files_in_order() {
    let kiln = Kiln::new();
    let paths = kiln.run(&["config", "path"]).exits(0).stdout;
    let lines: Vec<&str> = paths.lines().collect();
    assert!(lines[0].starts_with("user ") && lines[0].contains("config.toml"), "{paths}");
    assert!(lines[1].starts_with("project "), "{paths}");
}
