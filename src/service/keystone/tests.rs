//! Against a small Keystone of our own; `tests/keystone.sh` asks a real one.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// What the small Keystone does with questions about a client's token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Answers,
    /// It has forgotten the service's own token, once.
    Forgets,
    ForbidsTheService,
    Fails,
    Babbles,
    Redirects,
}

#[derive(Debug)]
struct Small {
    url: String,
    own_tokens: Arc<AtomicUsize>,
    questions: Arc<AtomicUsize>,
}

impl Small {
    fn start(mood: Mood) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v3", listener.local_addr().unwrap());
        let (own_tokens, questions) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let counts = (Arc::clone(&own_tokens), Arc::clone(&questions));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let counts = (Arc::clone(&counts.0), Arc::clone(&counts.1));
                std::thread::spawn(move || converse(&stream.unwrap(), mood, &counts));
            }
        });
        Self { url, own_tokens, questions }
    }

    fn questions(&self) -> usize {
        self.questions.load(Ordering::SeqCst)
    }
}

fn converse(stream: &TcpStream, mood: Mood, (own_tokens, questions): &(Arc<AtomicUsize>, Arc<AtomicUsize>)) {
    let mut reader = BufReader::new(stream);
    let (mut first, mut headers) = (String::new(), BTreeMap::new());
    reader.read_line(&mut first).unwrap();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let body = String::from_utf8(body).unwrap();
    let (status, extra, text) = if first.starts_with("POST /v3/auth/tokens ") {
        assert!(body.contains("\"s3cret\""), "{body}");
        let number = own_tokens.fetch_add(1, Ordering::SeqCst);
        (
            201,
            format!("X-Subject-Token: own-{number}\r\n"),
            document("ekko", "services", "default", &["service"], 3600),
        )
    } else {
        assert!(first.starts_with("GET /v3/auth/tokens?nocatalog=true "), "{first}");
        questions.fetch_add(1, Ordering::SeqCst);
        let none = String::new;
        match mood {
            Mood::Forgets if headers["x-auth-token"] == "own-0" => (401, none(), "{}".to_owned()),
            Mood::ForbidsTheService => (403, none(), "{}".to_owned()),
            Mood::Fails => (500, none(), "{}".to_owned()),
            Mood::Babbles => (200, none(), "{\"token\": 7}".to_owned()),
            Mood::Redirects => (302, "Location: http://127.0.0.1:1/\r\n".to_owned(), String::new()),
            Mood::Answers | Mood::Forgets => match headers["x-subject-token"].as_str() {
                "of-host" => (200, none(), document("host", "blue", "default", &["reader", "backup"], 3600)),
                "of-keeper" => {
                    (200, none(), document("keeper", "blue", "default", &["keeper", "backup"], 3600))
                }
                "of-stranger" => (200, none(), document("stranger", "blue", "default", &["unrelated"], 3600)),
                "of-abroad" => (200, none(), document("abroad", "blue", "elsewhere", &["backup"], 3600)),
                "of-odd" => (200, none(), document("odd", "a:b", "default", &["backup"], 3600)),
                "of-past" => (200, none(), document("past", "blue", "default", &["backup"], -1)),
                "of-nowhere" => (200, none(), document("nowhere", "", "", &["backup"], 3600)),
                _ => (404, none(), "{}".to_owned()),
            },
        }
    };
    let length = text.len();
    let mut stream = stream;
    write!(
        stream,
        "HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {length}\r\n{extra}\r\n{text}"
    )
    .unwrap();
}

fn document(user: &str, project: &str, domain: &str, roles: &[&str], seconds: i64) -> String {
    let end = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(seconds);
    let roles: Vec<_> = roles.iter().map(|name| serde_json::json!({ "id": "r", "name": name })).collect();
    let mut token = serde_json::json!({
        "expires_at": end.to_string(), "methods": ["password"], "roles": roles,
        "user": { "id": format!("id-{user}"), "name": user, "domain": { "id": "default", "name": "Default" } },
    });
    if !project.is_empty() {
        token["project"] = serde_json::json!({ "id": format!("id-{project}").replace(':', "-"), "name": project, "domain": { "id": domain } });
    }
    serde_json::json!({ "token": token }).to_string()
}

fn keystone(url: &str, more: &str) -> Arc<Keystone> {
    let text = format!(
        "url = \"{url}\"\nuser = \"ekko\"\npassword = \"s3cret\"\nuser_project = \"services\"\n{more}\n\
         [roles]\nreader = \"restore\"\nbackup = \"backup\"\nkeeper = \"operator\"\n"
    );
    Arc::new(Keystone::new(&toml::from_str(&text).unwrap()).unwrap())
}

/// Asks about a token as a request does, and says what came of it.
fn ask(keystone: &Arc<Keystone>, token: &str) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let verdict = runtime.block_on(async {
        match keystone.known(token)? {
            Some(verdict) => Ok(verdict),
            None => keystone.ask(token).await,
        }
    });
    match verdict {
        Ok(Verdict::In(caller)) => {
            format!("{} {} {}", caller.who, caller.view.project().unwrap(), caller.role)
        }
        Ok(Verdict::Unknown) => "unknown".to_owned(),
        Err(refused) => refused.refusal().status().to_string(),
    }
}

#[test]
fn who_asks_is_what_keystone_says_and_the_highest_role_counts() {
    let small = Small::start(Mood::Answers);
    let by_id = keystone(&small.url, "");
    assert_eq!(ask(&by_id, "of-host"), "keystone:id-host@id-blue id-blue backup");
    assert_eq!(ask(&by_id, "of-keeper"), "keystone:id-keeper@id-blue id-blue operator");
    assert_eq!(ask(&by_id, "of-stranger"), "403");
    assert_eq!(ask(&by_id, "of-nowhere"), "403");
    assert_eq!(ask(&by_id, "of-past"), "unknown");
    assert_eq!(ask(&by_id, "made-up"), "unknown");
    assert_eq!(small.own_tokens.load(Ordering::SeqCst), 1, "the service's own token is used again");
    let by_name = keystone(&small.url, "project = \"name\"");
    assert_eq!(ask(&by_name, "of-host"), "keystone:id-host@id-blue blue backup");
    assert_eq!(ask(&by_name, "of-abroad"), "403", "a name of another domain is another project");
    assert_eq!(ask(&by_name, "of-odd"), "403", "no name is a way into another project");
}

#[test]
fn answers_are_believed_for_a_while_and_bad_ones_too() {
    let small = Small::start(Mood::Answers);
    let cached = keystone(&small.url, "");
    for token in ["of-host", "made-up", "of-stranger"] {
        let first = ask(&cached, token);
        let questions = small.questions();
        assert_eq!((ask(&cached, token), small.questions()), (first, questions), "{token}");
    }
    let never = keystone(&small.url, "cache_seconds = 0");
    let questions = small.questions();
    for _ in 0..3 {
        ask(&never, "of-host");
    }
    assert_eq!(small.questions(), questions + 3);
}

#[test]
fn a_token_of_its_own_that_is_no_longer_taken_is_made_anew_once() {
    let small = Small::start(Mood::Forgets);
    let keystone = keystone(&small.url, "");
    assert_eq!(ask(&keystone, "of-host"), "keystone:id-host@id-blue id-blue backup");
    assert_eq!((small.own_tokens.load(Ordering::SeqCst), small.questions()), (2, 2));
}

#[test]
fn whatever_keystone_does_but_answer_lets_nobody_in() {
    for mood in [Mood::ForbidsTheService, Mood::Fails, Mood::Babbles, Mood::Redirects] {
        let small = Small::start(mood);
        let keystone = keystone(&small.url, "");
        assert_eq!(ask(&keystone, "of-host"), "503", "{mood:?}");
        let questions = small.questions();
        assert_eq!(ask(&keystone, "of-keeper"), "503", "{mood:?}");
        assert_eq!(small.questions(), questions, "it is left alone for a moment");
    }
    // Nobody listens there.
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_eq!(ask(&keystone(&format!("http://{gone}/v3"), ""), "of-host"), "503");
    // Somebody does, and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v3", silent.local_addr().unwrap());
    assert_eq!(ask(&keystone(&url, "timeout_seconds = 1"), "of-host"), "503");
}

#[test]
fn what_was_let_in_stays_so_while_keystone_is_away_and_no_longer_than_it_was_believed() {
    let small = Small::start(Mood::Answers);
    let keystone = keystone(&small.url, "");
    let first = ask(&keystone, "of-host");
    *keystone.out_of_reach_until.lock().unwrap() = Some(Instant::now() + Duration::from_mins(1));
    assert_eq!(ask(&keystone, "of-host"), first);
    assert_eq!(ask(&keystone, "of-keeper"), "503");
    let answer = Answer::Unknown;
    let key = Fingerprint::of(b"of-host");
    keystone.known.lock().unwrap().keep(key, answer, Instant::now(), Duration::ZERO);
    assert_eq!(ask(&keystone, "of-host"), "503");
}
