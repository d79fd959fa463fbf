//! The documents of a container image, as an OCI layout and as `docker save` writes it. Digests in them cannot be
//! guessed, so `@1`, `@2` … stand for those of the parts.
#![no_main]

use std::fs;

use kiln_image::archive::{ContainerImage, Reference};
use sha2::{Digest as _, Sha256};

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A document in which the parts after it are named.
fn naming(text: &[u8], after: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut text = String::from_utf8_lossy(text).into_owned();
    for (number, (digest, bytes)) in after.iter().enumerate() {
        text = text.replace(&format!("@{number}"), &format!("sha256:{digest}"));
        text = text.replace(&format!("#{number}"), &bytes.len().to_string());
    }
    text.into_bytes()
}

fn member(archive: &mut Vec<u8>, name: &str, bytes: &[u8]) {
    let mut header = tar::Header::new_ustar();
    header.set_path(name).expect("names are short");
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    archive.extend_from_slice(header.as_bytes());
    archive.extend_from_slice(bytes);
    archive.resize(archive.len().next_multiple_of(512), 0);
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((how, data)) = data.split_first() else { return };
    // The last part first: each may name those behind it.
    let mut parts: Vec<(String, Vec<u8>)> = Vec::new();
    for part in data.rsplit(|byte| *byte == 0).take(8) {
        let bytes = naming(part, &parts);
        parts.push((digest(&bytes), bytes));
    }
    let Some((_, first)) = parts.last() else { return };
    let folder = std::env::temp_dir().join(format!("kiln-fuzz-image-{}", std::process::id()));
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs).expect("there is room for it");
    let path = if how & 1 == 0 {
        fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("room");
        fs::write(folder.join("index.json"), first).expect("room");
        for (name, bytes) in &parts {
            fs::write(blobs.join(name), bytes).expect("room");
        }
        folder.clone()
    } else {
        let mut archive = Vec::new();
        let document = if how & 2 == 0 { "manifest.json" } else { "index.json" };
        member(&mut archive, document, first);
        for (number, (name, bytes)) in parts.iter().enumerate() {
            member(&mut archive, &format!("blobs/sha256/{name}"), bytes);
            member(&mut archive, &number.to_string(), bytes);
        }
        archive.resize(archive.len() + 1024, 0);
        let path = folder.join("saved.tar");
        fs::write(&path, &archive).expect("room");
        path
    };
    let name = (how & 4 == 4).then(|| "a".to_owned());
    let reference = Reference { name, ..Reference::default() };
    if let Ok(image) = ContainerImage::open(&path, &reference) {
        for layer in &image.layers {
            assert!(layer.path().starts_with(&folder), "a layer from elsewhere");
        }
    }
    let _ = fs::remove_dir_all(&folder);
});
