//! `kiln disk import --lazy`: disks on images that are not copied.

use kiln_registry::testing::Server;

use crate::kiln::Kiln;

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../overlaybd/tests/data");
const LAYERS: [&str; 3] = ["l0", "l1", "l2"];

/// The layers that other tools made, a configuration that names them in both ways, and what they hold.
fn stack(kiln: &Kiln) {
    let mut lowers = Vec::new();
    for name in LAYERS {
        let bytes = std::fs::read(format!("{DATA}/e_ext4/{name}.obd")).expect("it is kept");
        let file = format!("layers/{name}/overlaybd.commit");
        kiln.write(&file, bytes);
        lowers.push(match name {
            "l1" => serde_json::json!({"dir": "l1"}),
            _ => serde_json::json!({"file": format!("{name}/overlaybd.commit")}),
        });
    }
    kiln.write("layers/config.v1.json", serde_json::json!({"lowers": lowers}).to_string());
    let convert = ["layer", "convert", "--to", "raw", "--output", "whole.img"];
    kiln.run(&[&convert[..], &["layers/config.v1.json"]].concat()).exits(0);
}

fn import(kiln: &Kiln) {
    let words = ["disk", "import", "--lazy", "layers/config.v1.json", "base"];
    let said = kiln.run(&words).exits(0).stdout;
    assert_eq!(said, "made base, 64M, on layers/config.v1.json, which has to stay\n");
}

#[test]
fn a_disk_on_layers_takes_no_space_and_is_what_they_are() {
    let kiln = Kiln::new();
    stack(&kiln);
    import(&kiln);
    kiln.run(&["disk", "verify", "base", "whole.img"]).exits(0);
    let json = kiln.run(&["disk", "stat", "base", "--format", "json"]).exits(0).json();
    let base = serde_json::json!({"image": "layers/config.v1.json", "shown": 64 << 20});
    assert_eq!((&json["base"], &json["referenced"]), (&base, &0.into()));
    let text = kiln.run(&["disk", "stat", "base"]).exits(0).stdout;
    assert!(text.contains("base              64M of layers/config.v1.json\n"), "{text}");
    kiln.run(&["disk", "snap", "base@ready"]).exits(0);
    kiln.run(&["disk", "clone", "base@ready", "vm-1"]).exits(0);
    let tree = kiln.run(&["disk", "tree"]).exits(0).stdout;
    assert_eq!(tree.matches("used  on layers/config.v1.json").count(), 1, "{tree}");
    kiln.run(&["disk", "export", "vm-1", "vm-1.img"]).exits(0);
    let read = |name: &str| std::fs::read(kiln.folder().join(name)).expect("it is there");
    assert!(read("vm-1.img") == read("whole.img"));
    // What changed since is one layer, and what is sent is all of it.
    kiln.run(&["disk", "export", "--layer", "base@ready", "one.obd"]).exits(0);
    kiln.run(&["layer", "convert", "--to", "raw", "--output", "one.img", "one.obd"]).exits(0);
    assert!(read("one.img") == read("whole.img"));
    kiln.run(&["disk", "send", "base@ready", "--output", "base.stream"]).exits(0);
    let receive = ["disk", "receive", "--input", "base.stream", "--pool", "other.pool"];
    kiln.run(&["disk", "create", "x", "--size", "4K", "--pool", "other.pool"]).exits(0);
    kiln.run(&receive).exits(0);
    kiln.run(&["disk", "verify", "base", "whole.img", "--pool", "other.pool"]).exits(0);
    kiln.run(&["disk", "verify"]).exits(0);
}

#[test]
fn a_flattened_disk_outlives_its_image_and_others_say_what_they_miss() {
    let kiln = Kiln::new();
    stack(&kiln);
    import(&kiln);
    kiln.run(&["disk", "snap", "base@ready"]).exits(0);
    kiln.run(&["disk", "clone", "base@ready", "vm-1"]).exits(0);
    let said = kiln.run(&["disk", "flatten", "vm-1"]).exits(0).stdout;
    assert!(said.starts_with("vm-1 needs no image any more; "), "{said}");
    kiln.run(&["disk", "own", "--leave"]).exits(0);
    let layer = kiln.folder().join("layers/l2/overlaybd.commit");
    let bytes = std::fs::read(&layer).expect("it is there");
    std::fs::remove_file(&layer).expect("it is there");
    kiln.run(&["disk", "verify", "vm-1", "whole.img"]).exits(0);
    let missing = ["base \"layers/config.v1.json\"", "l2/overlaybd.commit", "put the layers back"];
    assert_ne!(kiln.run(&["disk", "verify", "base", "whole.img"]).complains(&missing).code, 0);
    let said = kiln.run(&["disk", "verify"]).exits(102).stdout;
    assert!(said.contains("base \"layers/config.v1.json\""), "{said}");
    // What could not be opened is not tried again at once by who has the pool open.
    let leave = || kiln.run(&["disk", "own", "--leave"]).exits(0);
    leave();
    // Another layer in its place is not taken for it.
    std::fs::copy(kiln.folder().join("layers/l1/overlaybd.commit"), &layer).expect("it works");
    let other = ["base \"layers/config.v1.json\": it is another image"];
    assert_ne!(kiln.run(&["disk", "verify", "base", "whole.img"]).complains(&other).code, 0);
    std::fs::write(&layer, bytes).expect("it works");
    leave();
    kiln.run(&["disk", "verify", "base", "whole.img"]).exits(0);
    kiln.run(&["disk", "verify"]).exits(0);
}

#[test]
fn what_is_no_image_is_refused_before_there_is_a_disk() {
    let kiln = Kiln::new();
    stack(&kiln);
    let refused = |source: &str, says: &[&str], code: i32| {
        kiln.run(&["disk", "import", "--lazy", source, "no"]).exits(code).complains(says);
    };
    refused("nothing", &["\"nothing\" is neither a file nor an image of a registry"], 2);
    refused("whole.img", &["whole.img"], 2);
    kiln.write("half.json", r#"{"lowers": [{"file": "gone.obd"}]}"#);
    refused("half.json", &["gone.obd"], 2);
    kiln.write("blob.json", r#"{"lowers": [{"digest": "sha256:00", "size": 1}]}"#);
    refused("blob.json", &["repoBlobUrl"], 2);
    let both = ["disk", "import", "--lazy", "whole.img", "no", "--from-format", "raw"];
    kiln.run(&both).exits(2).complains(&["--lazy"]);
    kiln.run(&["disk", "flatten", "no"]).exits(2);
}

#[test]
fn a_disk_on_an_image_of_a_registry_fetches_what_is_read() {
    let kiln = Kiln::new();
    let server = Server::start();
    let mut content = vec![0; 6 << 20];
    for (n, byte) in (0_u32..).zip(&mut content[1 << 20..(2 << 20) + 999]) {
        *byte = (n.wrapping_mul(2_654_435_761) >> 24).to_le_bytes()[0];
    }
    kiln.write("whole.img", &content);
    let convert = ["layer", "convert", "--to", "overlaybd", "--tar", "--output", "l.obd"];
    kiln.run(&[&convert[..], &["whole.img"]].concat()).exits(0);
    let image = format!("{}/disks/root:1", server.address());
    kiln.run(&["layer", "push", "l.obd", &image]).exits(0);
    kiln.run(&["disk", "import", "--lazy", &image, "base"]).exits(0);
    kiln.run(&["disk", "verify", "base", "whole.img"]).exits(0);
    let json = kiln.run(&["disk", "stat", "base", "--format", "json"]).exits(0).json();
    assert_eq!(json["base"]["image"], image.as_str());
    // The image that has the tag now is the one that stays.
    kiln.run(&["disk", "snap", "base@ready"]).exits(0);
    kiln.run(&["disk", "clone", "base@ready", "vm-1"]).exits(0);
    kiln.run(&["disk", "flatten", "vm-1"]).exits(0);
    kiln.run(&["disk", "verify", "vm-1", "whole.img"]).exits(0);
}
