//! What is pushed is pulled again.

use std::io::Cursor;

use kiln_registry::testing::Server;
use kiln_registry::{Digest, Platform, Pushed, RegistryError, overlaybd};

use crate::{descriptor, noise, reference, repository, with_blob};

#[test]
fn an_image_comes_back_as_it_was_pushed() {
    let server = Server::start();
    let repository = repository(server.address());
    let folder = tempfile::tempdir().unwrap();
    let layers = [noise(100_000, 1), noise(5, 2)].map(|bytes| {
        let path = folder.path().join("layer");
        std::fs::write(&path, &bytes).unwrap();
        let digest = Digest::of(&bytes);
        assert_eq!(repository.push_file(&path, &digest, None).unwrap(), Pushed::Sent);
        assert_eq!(repository.push_file(&path, &digest, None).unwrap(), Pushed::Already);
        (bytes.clone(), overlaybd::layer(digest, bytes.len() as u64, Some("ext4")))
    });
    let reference = reference(server.address());
    let descriptors: Vec<_> = layers.iter().map(|(_, layer)| layer.clone()).collect();
    let digest = overlaybd::publish(&repository, &reference, descriptors.clone()).unwrap();
    let again = overlaybd::publish(&repository, &reference, descriptors.clone()).unwrap();
    assert_eq!(digest, again, "the same layers make the same image");

    for reference in [reference.clone(), reference.pinned(digest)] {
        let (found, image) = repository.image(&reference, &Platform::here()).unwrap();
        assert_eq!(found, digest);
        assert_eq!(overlaybd::layers(&reference, &image).unwrap(), descriptors);
        assert_eq!(image.layers[0].annotation(overlaybd::FS_TYPE), Some("ext4"));
        for (bytes, layer) in &layers {
            let mut out = Cursor::new(Vec::new());
            repository.pull(layer, &mut out, &mut |_| {}).unwrap();
            assert!(out.into_inner() == *bytes);
        }
    }
}

#[test]
fn a_large_blob_goes_in_pieces() {
    let (_server, bytes, blob) = with_blob((33 << 20) + 17);
    let mut out = Cursor::new(Vec::new());
    repository(_server.address()).pull(&blob, &mut out, &mut |_| {}).unwrap();
    assert!(out.into_inner() == bytes);
}

#[test]
fn a_blob_is_taken_over_from_another_repository() {
    let (server, bytes, blob) = with_blob(70_000);
    let other = format!("{}/other/place:1", server.address()).parse().unwrap();
    let other = kiln_registry::Repository::new(&other, &kiln_registry::testing::impatient());
    let other = other.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("layer");
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(other.blob_size(&blob.digest).unwrap(), None);
    let pushed = other.push_file(&path, &blob.digest, Some("disks/root")).unwrap();
    assert_eq!(pushed, Pushed::Mounted);
    assert_eq!(other.blob_size(&blob.digest).unwrap(), Some(70_000));
    // From where it is not, it is sent.
    let more = noise(1000, 3);
    std::fs::write(&path, &more).unwrap();
    let pushed = other.push_file(&path, &Digest::of(&more), Some("disks/root")).unwrap();
    assert_eq!(pushed, Pushed::Sent);
}

#[test]
fn what_is_not_there_is_said_to_be_missing() {
    let server = Server::start();
    let repository = repository(server.address());
    let error = repository.manifest("nothing").unwrap_err();
    assert!(matches!(error, RegistryError::Missing { .. }), "{error}");
    assert!(error.to_string().contains("disks/root: nothing"), "{error}");
    let blob = descriptor(Digest::of(b"nothing"), 7);
    let error = repository.pull(&blob, Cursor::new(Vec::new()), &mut |_| {}).unwrap_err();
    assert!(matches!(error, RegistryError::Missing { .. }), "{error}");
    assert_eq!(repository.blob_size(&blob.digest).unwrap(), None);
}

#[test]
fn an_ordinary_image_is_refused_with_the_reason() {
    let server = Server::start();
    let repository = repository(server.address());
    let (digest, _) = repository.push_bytes(b"tar").unwrap();
    let reference = reference(server.address());
    for (name, value, reason) in [
        ("some/annotation", "x".to_owned(), "is not of overlaybd"),
        (overlaybd::BLOB_DIGEST, Digest::of(b"other").to_string(), "its annotation another"),
        ("containerd.io/snapshot/overlaybd/turbo-oci/target-digest", "x".to_owned(), "turboOCI"),
    ] {
        let mut layer = descriptor(digest, 3);
        layer.annotations = Some([(name.to_owned(), value)].into());
        overlaybd::publish(&repository, &reference, vec![layer]).unwrap();
        let (_, image) = repository.image(&reference, &Platform::here()).unwrap();
        let error = overlaybd::layers(&reference, &image).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn of_several_images_the_one_for_this_machine_is_taken() {
    let server = Server::start();
    let repository = repository(server.address());
    let reference = reference(server.address());
    let (digest, _) = repository.push_bytes(b"layer").unwrap();
    let image = overlaybd::publish(&repository, &reference, vec![descriptor(digest, 5)]).unwrap();
    let (_, manifest) = repository.image(&reference, &Platform::here()).unwrap();
    let size = serde_json::to_vec(&manifest).unwrap().len();
    let index = |architecture: &str| {
        let kind = "application/vnd.oci.image.index.v1+json";
        let text = serde_json::json!({"schemaVersion": 2, "mediaType": kind, "manifests": [
            {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": image.to_string(), "size": size,
             "platform": {"architecture": architecture, "os": "linux"}},
            {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": image.to_string(), "size": size,
             "platform": {"architecture": "riscv64", "os": "linux"}},
        ]});
        repository.put_manifest(Some("1"), kind, text.to_string().as_bytes()).unwrap();
        repository.image(&reference, &Platform::here())
    };
    assert_eq!(index(&Platform::here().architecture).unwrap().0, image);
    let error = index("s390x").unwrap_err().to_string();
    assert!(error.contains("linux/s390x, linux/riscv64"), "{error}");
}
