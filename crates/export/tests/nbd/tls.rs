//! TLS: with real clients, and without it where it has to be.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use kiln_block::testing::Dice;
use kiln_block::{BlockDevice, ByteLen, ByteOffset, MemoryDevice};
use kiln_export::nbd::{Address, Clients, Server, Tls, TlsError};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

use crate::client::{Client, go, one, option};

/// An authority, a server and a client, each with its folder as QEMU wants it.
struct Papers {
    folder: tempfile::TempDir,
}

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Writes `ROLE-cert.pem` and `ROLE-key.pem`.
fn issue(folder: &Path, role: &str, by: &CertifiedIssuer<'_, KeyPair>) {
    fs::create_dir_all(folder).unwrap();
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, role);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![match role {
        "server" => ExtendedKeyUsagePurpose::ServerAuth,
        _ => ExtendedKeyUsagePurpose::ClientAuth,
    }];
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, by).unwrap();
    fs::write(folder.join(format!("{role}-cert.pem")), certificate.pem()).unwrap();
    fs::write(folder.join(format!("{role}-key.pem")), key.serialize_pem()).unwrap();
}

impl Papers {
    fn new() -> Papers {
        let papers = Papers { folder: crate::sockets::socket_folder() };
        let ours = authority("ours");
        issue(&papers.server(), "server", &ours);
        issue(&papers.client(), "client", &ours);
        let stranger = authority("theirs");
        issue(&papers.stranger(), "client", &stranger);
        for folder in [papers.server(), papers.client(), papers.stranger()] {
            fs::write(folder.join("ca-cert.pem"), ours.pem()).unwrap();
        }
        papers
    }

    fn server(&self) -> PathBuf {
        self.folder.path().join("server")
    }

    fn client(&self) -> PathBuf {
        self.folder.path().join("home/.pki/libnbd")
    }

    /// Papers of an authority that the server does not know.
    fn stranger(&self) -> PathBuf {
        self.folder.path().join("stranger/.pki/libnbd")
    }

    fn tls(&self) -> Tls {
        Tls::open(&self.server(), Clients::Known).unwrap()
    }

    fn serve(&self, device: Arc<dyn BlockDevice>, clients: Clients) -> Server {
        let address = "127.0.0.1:0".parse().unwrap();
        let tls = Tls::open(&self.server(), clients).unwrap();
        Server::start_secured(&address, one(device), tls).unwrap()
    }

    fn try_run(&self, program: &str, arguments: &[&str]) -> Output {
        Command::new(program)
            .args(arguments)
            // Root's libnbd looks elsewhere, finds nothing and does without.
            .env("HOME", self.folder.path().join("home"))
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|error| panic!("cannot run {program}: {error}; see script/bootstrap"))
    }

    fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.try_run(program, arguments);
        assert!(
            output.status.success(),
            "{program} {arguments:?}: {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }
}

/// With a name that is in the certificate.
fn uri(server: &Server) -> String {
    let uri = server.uri("disk");
    assert!(uri.starts_with("nbds://127.0.0.1:"), "{uri}");
    uri.replace("127.0.0.1", "localhost")
}

fn port(server: &Server) -> String {
    let Address::Tcp(address) = server.address() else { panic!("not a port") };
    address.port().to_string()
}

fn filled() -> Arc<MemoryDevice> {
    let device = MemoryDevice::new(ByteLen::mib(24));
    let mut bytes = vec![0; 20 << 20];
    Dice::seeded(5).fill(&mut bytes);
    device.write_at(ByteOffset::new(1 << 20), &bytes).unwrap();
    Arc::new(device)
}

/// What qemu's programs need to be told of a client's papers and the server.
fn for_qemu(folder: &Path, server: &Server) -> [String; 3] {
    let credentials =
        format!("tls-creds-x509,id=t,endpoint=client,verify-peer=yes,dir={}", folder.display());
    let image = format!("driver=nbd,host=localhost,port={},export=disk,tls-creds=t", port(server));
    [credentials, "--image-opts".to_owned(), image]
}

#[test]
fn libnbd_connects_reads_and_writes_within_tls() {
    let (papers, device) = (Papers::new(), filled());
    let server = papers.serve(device.clone(), Clients::Anybody);
    let told = papers.run("nbdinfo", &[&uri(&server)]);
    assert!(told.contains("protocol: newstyle-fixed with TLS, using structured packets"), "{told}");
    let copy = papers.folder.path().join("copy");
    papers.run("nbdcopy", &["--connections=4", &uri(&server), copy.to_str().unwrap()]);
    assert!(fs::read(&copy).unwrap() == device.to_vec());
    let target = Arc::new(MemoryDevice::new(ByteLen::mib(24)));
    let second = papers.serve(target.clone(), Clients::Anybody);
    papers.run("nbdcopy", &["--flush", copy.to_str().unwrap(), &uri(&second)]);
    assert!(target.to_vec() == device.to_vec());
}

#[test]
fn nbdkit_shows_its_certificate_and_passes_on_what_it_is_given() {
    let (papers, device) = (Papers::new(), filled());
    let server = papers.serve(device.clone(), Clients::Certified);
    let copy = papers.folder.path().join("copy");
    let port = format!("port={}", port(&server));
    let command = format!("nbdcopy \"$uri\" {}", copy.display());
    let folders = [(papers.client(), true), (papers.stranger(), false)];
    for (folder, known) in folders {
        let folder = format!("tls-certificates={}", folder.display());
        let plugin = ["nbd", "hostname=localhost", &port, "export=disk", "tls=require", &folder];
        let output =
            papers.try_run("nbdkit", &[&["-U", "-"], &plugin[..], &["--run", &command]].concat());
        assert_eq!(output.status.success(), known, "{output:?}");
    }
    assert!(fs::read(&copy).unwrap() == device.to_vec());
}

#[test]
fn qemu_connects_reads_and_writes_within_tls() {
    let (papers, device) = (Papers::new(), filled());
    let server = papers.serve(device.clone(), Clients::Known);
    let [credentials, options, image] = for_qemu(&papers.client(), &server);
    let told = papers.run("qemu-img", &["info", "--object", &credentials, &options, &image]);
    assert!(told.contains("virtual size: 24 MiB"), "{told}");
    let script = ["write -P 0x77 3M 2M", "read -P 0x77 3M 2M", "flush", "discard 8M 1M"];
    let mut arguments = vec!["--object", &credentials, &options];
    for line in script {
        arguments.extend(["-c", line]);
    }
    arguments.push(&image);
    let told = papers.run("qemu-io", &arguments);
    assert!(!told.contains("failed"), "{told}");
    assert!(device.to_vec()[3 << 20..5 << 20].iter().all(|byte| *byte == 0x77));
}

#[test]
fn a_client_that_the_authority_does_not_know_is_told_nothing() {
    let papers = Papers::new();
    let server = papers.serve(filled(), Clients::Known);
    let [credentials, options, image] = for_qemu(&papers.stranger(), &server);
    let output = papers.try_run("qemu-img", &["info", "--object", &credentials, &options, &image]);
    assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
}

#[test]
fn a_client_without_a_certificate_is_served_where_none_is_asked_for() {
    let papers = Papers::new();
    for file in ["client-cert.pem", "client-key.pem"] {
        fs::remove_file(papers.client().join(file)).unwrap();
    }
    let told = |clients| {
        let server = papers.serve(filled(), clients);
        let [credentials, options, image] = for_qemu(&papers.client(), &server);
        let output =
            papers.try_run("qemu-img", &["info", "--object", &credentials, &options, &image]);
        assert_eq!(output.status.success(), !output.stdout.is_empty(), "{output:?}");
        output.status.success()
    };
    assert!(!told(Clients::Certified) && !told(Clients::Known) && told(Clients::Anybody));
    fs::remove_file(papers.server().join("ca-cert.pem")).unwrap();
    let error = Tls::open(&papers.server(), Clients::Certified).unwrap_err();
    assert!(matches!(error, TlsError::File { .. }), "{error}");
    assert!(told(Clients::Known), "there is nothing to know them by");
}

#[test]
fn nothing_is_said_about_disks_before_tls() {
    let papers = Papers::new();
    let folder = crate::sockets::socket_folder();
    let path = folder.path().join("s");
    let address = Address::Unix(path.clone());
    let server = Server::start_secured(&address, one(filled()), papers.tls()).unwrap();
    assert!(server.uri("disk").starts_with("nbds+unix:///disk?socket="));
    let mut client = Client::connect(&path);
    // List, go, structured replies, list of contexts: all of them have to wait.
    for (number, data) in [(3, vec![]), (7, go("disk", &[])), (8, vec![]), (9, vec![])] {
        let replies = client.option(number, &data);
        assert_eq!(replies.last().unwrap().0, (1 << 31) + 5, "option {number}");
    }
    // Starting TLS takes no data.
    assert_eq!(client.option(5, b"x").last().unwrap().0, (1 << 31) + 3);
    // The oldest way to choose has no way to be refused.
    client.send(&option(1, b"disk"));
    client.cut_off();
}

#[test]
fn words_that_were_slipped_in_before_tls_end_the_connection() {
    let papers = Papers::new();
    let server = papers.serve(filled(), Clients::Known);
    let Address::Tcp(address) = *server.address() else { panic!("not a port") };
    let mut stream = TcpStream::connect(address).unwrap();
    let mut words = 3_u32.to_be_bytes().to_vec();
    words.extend(option(5, &[]));
    words.extend(option(7, &go("disk", &[])));
    stream.write_all(&words).unwrap();
    let mut told = Vec::new();
    // The end may be a reset, as what was slipped in was never read.
    let _ = stream.read_to_end(&mut told);
    let (words, rest) = told.split_at(18 + 20);
    assert_eq!(words[26..34], [0, 0, 0, 5, 0, 0, 0, 1], "TLS may begin");
    // The words that followed are no TLS, which may be answered with an alert (21) and with nothing else.
    assert!(rest.is_empty() || (rest[0] == 21 && rest.len() == 7), "{rest:?}");
}

#[test]
fn noise_instead_of_tls_hurts_nobody_else() {
    let papers = Papers::new();
    let folder = crate::sockets::socket_folder();
    let path = folder.path().join("s");
    let address = Address::Unix(path.clone());
    let _server = Server::start_secured(&address, one(filled()), papers.tls()).unwrap();
    for noise in [&[0_u8; 4096][..], b"GET / HTTP/1.1\r\n\r\n", &[22, 3, 1, 255, 255, 1, 0, 0, 9]] {
        let mut stream = UnixStream::connect(&path).unwrap();
        let mut words = 3_u32.to_be_bytes().to_vec();
        words.extend(option(5, &[]));
        stream.write_all(&words).unwrap();
        stream.read_exact(&mut [0; 38]).unwrap();
        let _ = stream.write_all(noise);
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    }
    let mut client = Client::connect(&path);
    client.option(2, &[]);
    client.cut_off();
}

#[test]
fn other_machines_are_served_with_tls_alone() {
    let papers = Papers::new();
    let everywhere = Address::Tcp(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)));
    let error = Server::start(&everywhere, one(filled())).unwrap_err();
    assert!(error.to_string().contains("TLS certificates"), "{error}");
    let server = Server::start_secured(&everywhere, one(filled()), papers.tls()).unwrap();
    let [credentials, options, image] = for_qemu(&papers.client(), &server);
    papers.run("qemu-img", &["info", "--object", &credentials, &options, &image]);
}

#[test]
fn files_that_are_of_no_use_are_named() {
    let papers = Papers::new();
    let folder = papers.server();
    let said = |wrong: &str| {
        let error = Tls::open(&folder, Clients::Known).unwrap_err();
        assert!(error.to_string().contains(wrong), "{error}");
    };
    let keep = |file: &str| (folder.join(file), fs::read(folder.join(file)).unwrap());
    for file in ["server-cert.pem", "server-key.pem", "ca-cert.pem"] {
        let (path, bytes) = keep(file);
        fs::write(&path, "rubbish").unwrap();
        said(file);
        fs::write(&path, bytes).unwrap();
    }
    // A key that belongs to another certificate.
    let (path, bytes) = keep("server-key.pem");
    fs::copy(papers.client().join("client-key.pem"), &path).unwrap();
    said("cannot be used");
    fs::remove_file(&path).unwrap();
    said("server-key.pem");
    fs::write(&path, bytes).unwrap();
    fs::write(
        folder.join("ca-crl.pem"),
        "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n",
    )
    .unwrap();
    said("cannot be used");
}
