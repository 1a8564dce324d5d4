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
    /// It has too much to do.
    IsBusy,
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
            Mood::IsBusy => (429, none(), String::new()),
            Mood::Redirects => (302, "Location: http://127.0.0.1:1/\r\n".to_owned(), String::new()),
            Mood::Answers | Mood::Forgets => match headers["x-subject-token"].as_str() {
                // As Apache's httpd does it, if only at another length.
                token if token.len() > 1000 => {
                    (400, none(), "<html>Size of a request header field</html>".to_owned())
                }
                own if own.starts_with("own-") => {
                    (200, none(), document("ekko", "services", "default", &[], 3600))
                }
                "of-breaker" => (500, none(), "{}".to_owned()),
                "of-babbler" => (200, none(), "<html>".to_owned()),
                "of-firewall" => (403, none(), "<html>".to_owned()),
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
    let end = crate::time::now() + jiff::SignedDuration::from_secs(seconds);
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
            None => keystone.ask(token, "address:192.0.2.1").await,
        }
    });
    match verdict {
        Ok(Verdict::In(caller)) => {
            format!("{} {} {}", caller.who, caller.view.project().unwrap(), caller.role)
        }
        Ok(Verdict::Unknown) => "unknown".to_owned(),
        Ok(Verdict::Unanswerable(refused)) => format!("this one: {}", refused.refusal().status()),
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
    for mood in [Mood::Fails, Mood::Babbles, Mood::Redirects, Mood::IsBusy] {
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
fn a_token_that_keystone_refuses_or_fails_at_keeps_nobody_else_out() {
    let small = Small::start(Mood::Answers);
    let keystone = keystone(&small.url, "");
    let long = "a".repeat(1500);
    for (token, verdict) in [
        (long.as_str(), "unknown"),
        ("of-breaker", "unknown"),
        ("of-babbler", "unknown"),
        ("of-firewall", "this one: 503"),
    ] {
        assert_eq!(ask(&keystone, token), verdict, "{token:.20}");
        assert!(!keystone.is_out_of_reach(), "{token:.20}");
    }
    assert_eq!(ask(&keystone, "of-host"), "keystone:id-host@id-blue id-blue backup");
    let questions = small.questions();
    assert_eq!(
        (ask(&keystone, &long), small.questions()),
        ("unknown".to_owned(), questions),
        "it is remembered"
    );
}

#[test]
fn a_service_that_may_not_ask_lets_nobody_in() {
    let small = Small::start(Mood::ForbidsTheService);
    assert_eq!(ask(&keystone(&small.url, ""), "of-host"), "this one: 503");
}

#[test]
fn slow_questions_of_one_address_leave_room_for_those_of_another() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v3", silent.local_addr().unwrap());
    let keystone = keystone(&url, "timeout_seconds = 3");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let ask = |token: String, who: &'static str| {
        let keystone = Arc::clone(&keystone);
        runtime.spawn(async move { keystone.ask(&token, who).await.is_err() })
    };
    let many: Vec<_> = (0..50).map(|number| ask(format!("token-{number}"), "address:192.0.2.1")).collect();
    let begun = Instant::now();
    while keystone.room.taken() < 6 {
        assert!(begun.elapsed() < Duration::from_mins(1));
        std::thread::sleep(Duration::from_millis(5));
    }
    let other = ask("token".to_owned(), "address:192.0.2.2");
    while keystone.room.taken() < 7 {
        assert!(begun.elapsed() < Duration::from_mins(1), "the other one is not asked about");
        std::thread::sleep(Duration::from_millis(5));
    }
    many.iter().chain([&other]).for_each(tokio::task::JoinHandle::abort);
    drop(silent);
    runtime.shutdown_background();
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
