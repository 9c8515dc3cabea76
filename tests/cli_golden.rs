//! What people and programs see of `billingctl`, word for word: each file in `golden/` is a transcript.
//! `UPDATE_GOLDEN=1` writes the files anew; read the diff before committing it.

mod cli_fake;

use std::{fs, path::Path};

use cli_fake::{Script, Stage, TOKEN, ctl};

/// Collects one transcript and compares it with its file.
struct Transcript {
    name: &'static str,
    script: Script,
    text: String,
}

impl Transcript {
    fn new(name: &'static str) -> Self {
        Transcript {
            name,
            script: Script::three(),
            text: String::new(),
        }
    }

    fn of(name: &'static str, script: Script) -> Self {
        Transcript {
            name,
            script,
            text: String::new(),
        }
    }

    fn run(&mut self, code: u8, line: &str) -> &mut Self {
        self.on(code, line, &Stage::default())
    }

    /// Words are separated by spaces; `_` stands for a space inside a word.
    fn on(&mut self, code: u8, line: &str, stage: &Stage) -> &mut Self {
        let words: Vec<String> = line
            .split_whitespace()
            .map(|word| {
                word.replace("''", "")
                    .replace('_', " ")
                    .replace("TOKEN", &TOKEN.to_string())
            })
            .collect();
        let mut all = vec!["billingctl"];
        all.extend(words.iter().map(String::as_str));
        let ran = ctl(&self.script, stage, &all);
        let shown = line.replace("TOKEN", &TOKEN.to_string());
        let columns = stage
            .columns
            .map(|columns| format!("   ({columns} columns)"))
            .unwrap_or_default();
        self.text
            .push_str(&format!("$ billingctl {shown}{columns}\n"));
        for line in String::from_utf8_lossy(&stage.stdin).lines() {
            self.text
                .push_str(&format!("< {}\n", line.trim_end_matches('\r')));
        }
        self.text.push_str(&ran.stdout);
        for line in ran.stderr.lines() {
            self.text.push_str(&format!("2> {line}\n"));
        }
        self.text.push_str(&format!("[{}]\n\n", ran.code));
        assert_eq!(
            ran.code, code,
            "exit code of `billingctl {line}`\n{}",
            self.text
        );
        self
    }

    /// As `run`, for what says how fast this machine is: figures are not compared.
    fn timed(&mut self, code: u8, line: &str) -> &mut Self {
        let begun = self.text.len();
        self.run(code, line);
        let said = self.text.split_off(begun);
        let (asked, said) = said.split_once('\n').unwrap_or_default();
        let mut shown = format!("{asked}\n");
        for c in said.chars() {
            // A figure stands behind a space; `p99`, `2>` and `[0]` are none.
            let goes_on = shown.ends_with('#');
            let figure = c.is_ascii_digit() && (goes_on || shown.ends_with([' ', '.']));
            if !figure {
                shown.push(c);
            } else if !goes_on {
                shown.push('#');
            }
        }
        self.text.push_str(&shown);
        self
    }

    fn check(&self) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/golden")
            .join(format!("{}.txt", self.name));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&path, &self.text)
                .unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
            return;
        }
        let golden = fs::read_to_string(&path).unwrap_or_else(|error| {
            panic!("{}: {error}; UPDATE_GOLDEN=1 writes it", path.display())
        });
        for (nth, (is, was)) in self.text.lines().zip(golden.lines()).enumerate() {
            assert_eq!(
                is,
                was,
                "{}:{}; UPDATE_GOLDEN=1 accepts it",
                path.display(),
                nth + 1
            );
        }
        assert_eq!(
            self.text.lines().count(),
            golden.lines().count(),
            "{}",
            path.display()
        );
    }
}

fn stdin(text: &str) -> Stage {
    Stage {
        stdin: text.as_bytes().to_vec(),
        ..Stage::default()
    }
}

fn columns(columns: u16) -> Stage {
    Stage {
        columns: Some(columns),
        ..Stage::default()
    }
}

#[test]
fn help() {
    let mut help = Transcript::new("help");
    for words in [
        "",
        "lease",
        "lease acquire",
        "lease release",
        "lease renew",
        "lease get",
        "lease list",
        "lease watch",
        "lease force-release",
        "invoice",
        "invoice submit",
        "invoice generate",
        "invoice get",
        "invoice list",
        "invoice history",
        "invoice cancel",
        "invoice requeue",
        "charge",
        "charge list",
        "charge resolve",
        "cluster",
        "cluster status",
        "cluster members",
        "cluster add",
        "cluster promote",
        "cluster remove",
        "cluster transfer-leader",
        "cluster snapshot",
        "cluster backup",
        "cluster verify",
        "cluster restore",
        "cluster allow-charges",
        "cluster pause-provider",
        "cluster resume-provider",
        "audit",
        "audit read",
        "audit verify",
        "bench",
        "doctor",
        "completion",
    ] {
        help.run(0, &format!("{words} --help"));
    }
    help.run(0, "-h").run(0, "--version").check();
}

#[test]
fn lease() {
    Transcript::new("lease")
        .run(0, "lease acquire inv-7 --ttl 30s --holder ana@desk")
        .run(0, "lease acquire inv-7 --ttl 30s --holder ana@desk -o json")
        .run(0, "lease acquire inv-7 --ttl 30s --holder ana@desk -o name")
        .run(0, "lease acquire inv-doubt --holder ana@desk")
        .run(1, "lease acquire inv-held --ttl 30s")
        .run(0, "lease release inv-7 TOKEN")
        .run(0, "lease release inv-7 5")
        .run(0, "lease release inv-7 5 -o json")
        .run(0, "lease renew inv-7 TOKEN --ttl 1m")
        .run(0, "lease renew inv-7 TOKEN --ttl 1m -o jsonl")
        .run(1, "lease renew inv-stale 5")
        .run(0, "lease get inv-7")
        .run(0, "lease get inv-7 -o json")
        .run(0, "lease get inv-free")
        .run(0, "lease get inv-free -o json")
        .run(0, "lease list")
        .run(0, "lease list -o json")
        .run(0, "lease list -o jsonl")
        .run(0, "lease list -o name")
        .run(0, "lease list --limit 1")
        .run(0, "lease list --limit 1 -o json")
        .run(0, "lease list --holder nobody")
        .run(0, "lease list --holder nobody -o json")
        .run(0, "lease list --holder mallory")
        .run(0, "lease force-release inv-7 --reason worker_is_gone")
        .run(
            0,
            "lease force-release inv-free --reason worker_is_gone -o json",
        )
        .check();
}

#[test]
fn watch() {
    Transcript::new("watch")
        .run(0, "lease watch --count 3")
        .run(0, "lease watch --count 3 -o json")
        .run(0, "lease watch inv-7 --from 4714 --count 1 -o name")
        .run(0, "lease watch --list --count 1")
        .run(0, "lease watch inv-7 --list --count 2")
        .run(1, "lease watch --from 7")
        .run(2, "lease watch --from 0")
        .run(2, "lease watch --from 7 --list")
        .on(0, "lease watch --count 2", &columns(60))
        .check();
    Transcript::of("watch-unreachable", Script::default())
        .run(2, "lease watch")
        .check();
}

#[test]
fn invoice() {
    Transcript::new("invoice")
        .run(0, "invoice get inv-7")
        .run(0, "invoice get inv-7 -o json")
        .run(0, "invoice get inv-charging")
        .run(0, "invoice get inv-charging -o json")
        .run(0, "invoice get inv-review")
        .run(0, "invoice get inv-settled")
        .run(1, "invoice get inv-nobody")
        .run(0, "invoice list")
        .run(0, "invoice list -o json")
        .run(0, "invoice list --status paid -o name")
        .run(0, "invoice list --limit 3 -o name")
        .run(0, "invoice list --customer cus-nobody")
        .run(0, "invoice history inv-7")
        .run(0, "invoice history inv-7 -o json")
        .run(0, "invoice cancel inv-7 --reason customer_left")
        .run(0, "invoice cancel inv-7 --reason customer_left -o json")
        .run(1, "invoice cancel inv-paid --reason customer_left")
        .run(0, "invoice requeue inv-7 --reason card_renewed")
        .run(0, "invoice generate 5")
        .run(
            0,
            "invoice generate 3 --seed 7 --prefix A- --customers 2 --currency jpy --due 2026-12-01",
        )
        .run(0, "invoice generate 2500 --submit")
        .run(1, "invoice generate 1 --currency XXY")
        .run(1, "invoice generate 1 --due tomorrow")
        .run(1, "invoice generate 1 --prefix a_b")
        .check();
}

#[test]
fn charge() {
    Transcript::new("charge")
        .run(0, "charge list")
        .run(0, "charge list --in-doubt")
        .run(0, "charge list --in-doubt -o json")
        .run(0, "charge list --review --waiting -o name")
        .run(0, "charge resolve inv-3 --key demo.2.inv-3 --charged pi_1 --evidence dashboard,_12:04_UTC")
        .run(0, "charge resolve inv-3 --key demo.2.inv-3 --not-charged --evidence dashboard,_12:04_UTC -o json")
        .run(2, "charge resolve inv-3 --key demo.2.inv-3 --evidence dashboard")
        .run(2, "charge resolve inv-3 --key demo.2.inv-3 --charged pi_1 --not-charged --evidence dashboard")
        .check();
}

#[test]
fn cluster() {
    Transcript::new("cluster")
        .run(0, "cluster status")
        .run(0, "cluster status -o json")
        .run(0, "cluster status -o name")
        .run(
            0,
            "cluster allow-charges --evidence compared_with_the_books_of_22_Nov",
        )
        .run(0, "cluster pause-provider stripe --reason incident_4711")
        .run(
            0,
            "cluster resume-provider stripe --reason incident_4711_is_over -o json",
        )
        .check();
}

/// Somebody at the terminal, who types that.
fn asked(text: &str) -> Stage {
    Stage {
        asked: true,
        ..stdin(text)
    }
}

#[test]
fn members() {
    Transcript::new("members")
        .run(0, "cluster members")
        .run(0, "cluster members -o json")
        .run(0, "cluster members -o name")
        .run(0, "--endpoints 127.0.0.1:7102 cluster members")
        .on(0, "cluster members", &columns(78))
        .run(0, "cluster add 9 127.0.0.1:7109 127.0.0.1:7209")
        .run(0, "cluster add 9 127.0.0.1:7109 127.0.0.1:7209 -o json")
        .run(1, "cluster add 2 127.0.0.1:7109 127.0.0.1:7209")
        .run(2, "cluster add 0 127.0.0.1:7109 127.0.0.1:7209")
        .run(2, "cluster add 9 127.0.0.1 127.0.0.1:7209")
        .run(1, "cluster promote 9")
        .run(0, "cluster promote 9 --allow-even")
        .run(0, "cluster promote 9 --replaces 3 --yes -o json")
        .on(1, "cluster promote 9 --replaces 3", &asked("no\n"))
        .run(1, "cluster promote 4")
        .run(1, "cluster remove 3")
        .on(0, "cluster remove 3 --allow-even", &asked("y\n"))
        .on(1, "cluster remove 3 --allow-even", &asked("\n"))
        .run(0, "cluster remove 3 --allow-even --yes -o json")
        .run(1, "cluster remove 7")
        .run(0, "cluster transfer-leader")
        .run(0, "cluster transfer-leader 2 -o json")
        .run(1, "cluster transfer-leader 4")
        .run(3, "--timeout 1s cluster transfer-leader 3")
        .check();
    let lagging = Script {
        learner: true,
        ..Script::three()
    };
    Transcript::of("members-learner", lagging)
        .run(0, "cluster members")
        .run(0, "cluster members -o jsonl")
        .check();
    let newcomer = Script {
        newcomer: true,
        ..Script::three()
    };
    Transcript::of("members-catching-up", newcomer)
        .run(0, "cluster add 9 127.0.0.1:7109 127.0.0.1:7209 --wait")
        .check();
    let leaderless = Script {
        leaderless: true,
        ..Script::three()
    };
    Transcript::of("members-leaderless", leaderless)
        .run(0, "cluster members")
        .check();
    Transcript::of("members-unreachable", Script::default())
        .run(2, "cluster members")
        .run(2, "cluster remove 3")
        .check();
}

#[test]
fn bench() {
    Transcript::new("bench")
        .timed(0, "bench --seconds 1 --callers 2 --mode unary")
        .timed(0, "bench --seconds 1 --callers 2 -o json")
        .timed(0, "bench --seconds 1 --callers 1 --mode batch")
        .run(2, "bench --callers 0")
        .run(2, "bench --seconds 10s")
        .check();
    Transcript::of("bench-unreachable", Script::default())
        .run(2, "bench --seconds 1")
        .check();
}

#[test]
fn doctor() {
    Transcript::new("doctor")
        .run(0, "doctor")
        .run(0, "doctor -o json")
        .run(0, "doctor -o name")
        .run(0, "--endpoints 127.0.0.1:7102 doctor")
        .on(0, "doctor", &columns(78))
        .check();
    let ill = Script {
        ill: true,
        learner: true,
        torn: true,
        ..Script::three()
    };
    Transcript::of("doctor-ill", ill)
        .run(1, "doctor")
        .run(1, "doctor -o jsonl")
        .run(1, "doctor -o name")
        .on(1, "doctor", &columns(78))
        .check();
    let leaderless = Script {
        leaderless: true,
        ..Script::three()
    };
    Transcript::of("doctor-leaderless", leaderless)
        .run(1, "--endpoints 127.0.0.1:7101,127.0.0.1:9 doctor")
        .check();
    let alone = Script {
        nodes: vec!["127.0.0.1:7101"],
        ..Script::default()
    };
    Transcript::of("doctor-alone", alone)
        .run(0, "--endpoints 127.0.0.1:7101 doctor")
        .check();
    Transcript::of("doctor-unreachable", Script::default())
        .run(2, "doctor")
        .run(2, "doctor -o json")
        .check();
}

#[test]
fn a_node_that_is_down_is_shown_and_the_exit_code_says_so() {
    let two = Script {
        nodes: vec!["127.0.0.1:7101", "127.0.0.1:7102"],
        torn: true,
        ..Script::default()
    };
    Transcript::of("cluster-in-trouble", two)
        .run(2, "cluster status")
        .run(2, "cluster status -o json")
        // Other calls go on over the nodes that are left.
        .run(0, "lease get inv-7")
        .check();
}

#[test]
fn audit() {
    Transcript::new("audit")
        .run(0, "audit read")
        .run(0, "audit read --from 2 --limit 1 -o json")
        .run(0, "audit read --limit 2 -o name")
        .run(0, "audit verify")
        .run(0, "audit verify -o json")
        .run(2, "audit verify --expect 00")
        .check();
    let forged = Script {
        forged: Some(4),
        ..Script::three()
    };
    Transcript::of("audit-forged", forged)
        .run(2, "audit verify")
        .run(2, "audit verify -o json")
        .check();
}

#[test]
fn each_exit_code_has_its_words() {
    Transcript::new("errors")
        .run(1, "lease acquire inv-held --ttl 30s")
        .run(1, "lease release inv-stale 5")
        .run(1, "invoice get inv-nobody")
        .run(1, "lease get ''")
        .run(2, "--timeout 1s invoice get inv-leaderless")
        .run(3, "--timeout 1s invoice cancel inv-lost --reason gone")
        .run(3, "--timeout 1s lease force-release inv-lost --reason gone")
        .run(2, "--timeout 1s lease acquire inv-lost")
        .run(2, "lease acquire inv-7 --ttl 30")
        .run(2, "lease acquire inv-7 --ttl soon")
        .run(2, "lease release inv-7 abc")
        .run(2, "lease")
        .run(2, "invoice list --status OPEN")
        .run(2, "--endpoints nowhere lease list")
        .run(2, "frobnicate")
        .check();
    let deaf = Script {
        deaf: true,
        ..Script::three()
    };
    Transcript::of("errors-deaf", deaf)
        .run(3, "--timeout 1s lease acquire inv-lost")
        .check();
    Transcript::of("unreachable", Script::default())
        .run(2, "lease get inv-7")
        .run(
            2,
            "--endpoints 127.0.0.1:9,localhost:10 lease acquire inv-7",
        )
        .run(2, "cluster status")
        .check();
}

const HEADER: &str = "invoice_id,customer_id,amount_minor,currency,due_at,priority\n";

#[test]
fn csv() {
    let submit = "invoice submit -";
    let mut csv = Transcript::new("csv");
    csv.on(
        0,
        submit,
        &stdin(&format!(
            "{HEADER}inv-1,cus-1,100,EUR,2026-12-01,5\ninv-2,cus-1,200,EUR\n"
        )),
    );
    let broken = format!(
        "{HEADER}inv-1,cus-1,100,EUR\ninv-2,cus-1,12.50,EUR\ninv-3,cus-1,0,EUR\ninv-4,cus-1,100,EURO\n\
         inv 5,cus-1,100,EUR\n,cus-1,100,EUR\ninv-7,cus-1,100,EUR,tomorrow\ninv-8,cus-1,100,EUR,2026-02-30\n\
         inv-9,cus-1,100,EUR,2026-12-01T09:00:00\ninv-10,cus-1,100,EUR,,1001\ninv-11,cus-1,100,EUR,,1,2\n\
         \"inv-12,cus-1,100,EUR\ninv-13,cus-1,1000000000001,EUR\ninv-14\n\ninv-15,cus-1,100,EUR\n"
    );
    csv.on(1, submit, &stdin(&broken))
        .on(1, "invoice submit - -o json", &stdin(&broken))
        .on(1, "invoice submit - --dry-run", &stdin(&broken))
        .on(
            1,
            submit,
            &stdin(&format!(
                "{HEADER}inv-1,c,100,EUR\ninv-1,c,100,EUR\n\ninv-1,c,200,EUR\n"
            )),
        )
        .on(
            1,
            "invoice submit - -o json",
            &stdin(&format!("{HEADER}inv-1,c,100,EUR\ninv-1,c,200,EUR\n")),
        )
        .on(
            0,
            submit,
            &stdin(&format!(
                "\u{feff}{}",
                HEADER.replace('\n', "\r\n") + "inv-1,c,100,EUR\r\n"
            )),
        )
        .on(0, submit, &stdin(HEADER))
        .on(1, submit, &stdin(""))
        .on(1, submit, &stdin("inv-1,cus-1,100,EUR\n"))
        .on(
            1,
            submit,
            &stdin("invoice_id;customer_id;amount_minor;currency\n"),
        )
        .on(
            1,
            submit,
            &stdin("invoice_id,customer_id,amount,currency\n"),
        )
        .on(1, submit, &stdin("invoice_id,customer_id,amount_minor\n"))
        .on(
            2,
            "--timeout 1s invoice submit -",
            &stdin(&format!("{HEADER}inv-leaderless,c,100,EUR\n")),
        )
        .on(
            3,
            "--timeout 1s invoice submit -",
            &stdin(&format!("{HEADER}inv-lost,c,100,EUR\n")),
        )
        .run(2, "invoice submit no-such-file.csv")
        .run(2, "invoice submit /")
        .check();
}

#[test]
fn a_narrow_terminal_stays_readable() {
    Transcript::new("narrow")
        .on(0, "lease list", &columns(80))
        .on(0, "lease list", &columns(40))
        .on(0, "invoice list --limit 2", &columns(80))
        .on(0, "charge list --in-doubt", &columns(60))
        .on(0, "cluster status", &columns(60))
        .on(0, "audit read --limit 3", &columns(60))
        .on(0, "invoice get inv-charging", &columns(40))
        .on(0, "lease release --help", &columns(50))
        .check();
}
