//! A conversation with a QEMU of our own making, polite and otherwise.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use kiln_vm::qmp::{Client, Message, QmpError, parse};
use serde_json::{Value, json};

const LONG: Duration = Duration::from_secs(60);
const GREETING: &str =
    r#"{"QMP":{"version":{"qemu":{"micro":22,"minor":2,"major":7}},"capabilities":["oob"]}}"#;

/// A QEMU that greets, then answers each line as `answer` says (the command, its number).
fn talk(
    answer: impl Fn(&str, u64) -> String + Send + 'static,
) -> (Result<Client, QmpError>, mpsc::Receiver<String>) {
    let (ours, mut theirs) = UnixStream::pair().expect("a pair");
    let (told, events) = mpsc::channel();
    thread::spawn(move || {
        let input = BufReader::new(theirs.try_clone().expect("a clone"));
        let _ = writeln!(theirs, "{GREETING}");
        for line in input.lines().map_while(Result::ok) {
            let asked: Value = serde_json::from_str(&line).expect("the client speaks JSON");
            let name = asked["execute"].as_str().unwrap_or("");
            let id = asked["id"].as_u64().unwrap_or(0);
            if writeln!(theirs, "{}", answer(name, id)).is_err() {
                return;
            }
        }
    });
    let client = Client::connect(ours, Instant::now() + LONG, move |name, _| {
        let _ = told.send(name);
    });
    (client, events)
}

#[test]
fn answers_find_their_questions_and_events_come_in_between() {
    let (client, events) = talk(|name, id| {
        format!(
            "{{\"event\":\"RESUME\"}}\n{{\"return\":\"late\",\"id\":999}}\n{{\"return\":\"{name}\",\"id\":{id}}}"
        )
    });
    let client = client.unwrap();
    assert_eq!(client.version(), [7, 2, 22]);
    assert_eq!(client.execute("query-status", Value::Null, LONG).unwrap(), json!("query-status"));
    assert_eq!(client.monitor("info registers", LONG).unwrap(), "human-monitor-command");
    assert_eq!(events.recv_timeout(LONG).unwrap(), "RESUME");
}

#[test]
fn a_refusal_names_the_command_and_gives_qemus_reason() {
    let (client, _) = talk(|name, id| match name {
        "qmp_capabilities" => json!({"return": {}, "id": id}).to_string(),
        _ => json!({"error": {"class": "GenericError", "desc": "no such thing"}, "id": id})
            .to_string(),
    });
    let error = client.unwrap().execute("eject", Value::Null, LONG).unwrap_err();
    assert_eq!(error.to_string(), "QEMU refused \"eject\": no such thing");
}

#[test]
fn a_silent_qemu_is_given_up_and_its_late_answer_thrown_away() {
    let (client, _) = talk(|name, id| match name {
        "sleep" => "{}".to_owned(),
        _ => json!({"return": id, "id": id}).to_string(),
    });
    let client = client.unwrap();
    let error = client.execute("sleep", Value::Null, Duration::ZERO).unwrap_err();
    assert!(matches!(error, QmpError::Silent { .. }), "{error}");
    assert!(client.execute("query-status", Value::Null, LONG).is_ok());
}

#[test]
fn a_qemu_that_talks_nonsense_is_hung_up_on_and_nobody_waits_for_ever() {
    for nonsense in ["not json", "[1,2", "\u{0}\u{1}", "17"] {
        let (client, _) = talk(move |name, id| match name {
            "qmp_capabilities" => json!({"return": {}, "id": id}).to_string(),
            _ => nonsense.to_owned(),
        });
        let client = client.unwrap();
        let error = client.execute("query-status", Value::Null, LONG).unwrap_err();
        assert!(matches!(error, QmpError::Closed), "{error}");
        let error = client.execute("query-status", Value::Null, LONG).unwrap_err();
        assert!(matches!(error, QmpError::Closed), "{error}");
    }
}

#[test]
fn a_channel_that_ends_before_the_greeting_is_an_error() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    let error = Client::connect(ours, Instant::now() + LONG, |_, _| {}).unwrap_err();
    assert!(matches!(error, QmpError::Closed), "{error}");
}

proptest::proptest! {
    #[test]
    fn no_line_makes_the_parser_panic(line: Vec<u8>) {
        let _ = parse(&line);
    }

    #[test]
    fn any_object_is_understood_or_skipped(name in "[a-zA-Z_]{0,12}", id: u64) {
        let line = json!({ name: {"desc": id}, "id": id }).to_string();
        proptest::prop_assert!(parse(line.as_bytes()).is_ok());
        let answer = parse(format!("{{\"id\":{id},\"return\":null}}").as_bytes());
        proptest::prop_assert_eq!(answer, Ok(Message::Answer { id, result: Ok(Value::Null) }));
    }
}
