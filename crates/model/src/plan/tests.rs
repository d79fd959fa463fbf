use proptest::prelude::*;

use super::*;

const SCENARIO: &str = r#"
name = "three"
[vm]
memory = "2G"
[environment]
COLOUR = "red"
TASTE = "sour"
[[stages]]
name = "prepare"
run = "true"
arguments = ["-v"]
[[stages]]
name = "scrub-one"
run = "true"
timeout = "1m"
environment = { COLOUR = "green" }
[[stages]]
name = "scrub-two"
run = "true"
"#;

fn kernel() -> KernelIdentity {
    KernelIdentity { release: "6.12.0".into(), digest: "00".into() }
}

fn planned(choices: &Choices) -> Result<Plan, PlanError> {
    plan(&Scenario::parse(SCENARIO).unwrap(), &kernel(), choices)
}

fn names(plan: &Plan) -> Vec<&str> {
    plan.stages.iter().map(|stage| stage.name.as_str()).collect()
}

#[test]
fn a_wildcard_chooses_stages_in_the_scenarios_order() {
    let choices =
        Choices { stages: vec!["scrub-t*".into(), "prep?re".into()], ..Choices::default() };
    let plan = planned(&choices).unwrap();
    assert_eq!(names(&plan), ["prepare", "scrub-two"]);
    assert_eq!(plan.left_out, ["scrub-one".parse::<StageName>().unwrap()]);
}

#[test]
fn a_pattern_that_chooses_nothing_is_an_error_even_beside_one_that_does() {
    let choices =
        Choices { stages: vec!["prepare".into(), "scrub-tow".into()], ..Choices::default() };
    let error = planned(&choices).unwrap_err();
    insta::assert_snapshot!(error, @r#"no stage of three matches "scrub-tow" (did you mean scrub-two?); its stages: prepare, scrub-one, scrub-two"#);
}

#[test]
fn what_the_user_sets_wins_over_scenario_and_stage() {
    let choices = Choices {
        environment: vec![("COLOUR".into(), "blue".into())],
        arguments: vec!["-g".into(), "quick".into()],
        timeout: Some(TimeLimit::of_secs(5)),
        ..Choices::default()
    };
    let plan = planned(&choices).unwrap();
    assert_eq!(
        plan.environment,
        [("COLOUR".into(), "blue".into()), ("TASTE".into(), "sour".into())]
    );
    assert!(plan.stages.iter().all(|stage| stage.environment.is_empty()));
    assert_eq!(plan.stages[0].arguments, ["-v", "-g", "quick"]);
    assert!(plan.stages.iter().all(|stage| stage.timeout == TimeLimit::of_secs(5)));
}

#[test]
fn machine_wishes_are_layered_flag_over_scenario_over_configuration() {
    let choices = Choices {
        machine: MachineWish { cpus: Some("4".parse().unwrap()), ..MachineWish::default() },
        machine_defaults: MachineWish {
            cpus: Some("2".parse().unwrap()),
            memory: Some("4G".parse().unwrap()),
            hang_timeout: Some(TimeLimit::of_secs(7)),
            ..MachineWish::default()
        },
        ..Choices::default()
    };
    let machine = planned(&choices).unwrap().machine;
    assert_eq!((machine.cpus, machine.memory, machine.hang_timeout_ms), (4, 2 << 30, 7000));
}

#[test]
fn a_scenario_without_stages_says_what_it_is_for() {
    let scenario = Scenario::parse("name = \"poke\"").unwrap();
    let error = plan(&scenario, &kernel(), &Choices::default()).unwrap_err();
    assert_eq!(error.to_string(), "scenario poke has no stages: it is for `kiln shell poke`");
}

proptest! {
    #[test]
    fn every_stage_is_planned_or_left_out_exactly_once(pick in proptest::collection::vec(0usize..3, 0..3)) {
        let all = ["prepare", "scrub-one", "scrub-two"];
        let stages: Vec<String> = pick.iter().map(|&at| all[at].to_owned()).collect();
        let plan = planned(&Choices { stages, ..Choices::default() }).unwrap();
        let mut seen: Vec<&str> = names(&plan);
        seen.extend(plan.left_out.iter().map(StageName::as_str));
        seen.sort_unstable();
        prop_assert_eq!(seen, all);
    }
}

#[test]
fn a_job_spec_survives_its_text_form() {
    let plan = planned(&Choices::default()).unwrap();
    let spec = plan
        .job_spec(&JobPlaces {
            run: "20261121-142530-7f3a".parse().unwrap(),
            folder: "/runs/1".into(),
            boot: "/cache/vmlinux".into(),
            initramfs: Some("/cache/initramfs".into()),
            root: JobRoot::default(),
            modules: vec!["btrfs".into()],
            pool: Some("/data/disks.pool".into()),
            disks: vec![job::Disk {
                serial: "d".into(),
                size: 1 << 30,
                base: Some("golden@v1".into()),
                persistent: None,
            }],
            warm: Some("/cache/warm".into()),
        })
        .unwrap();
    assert_eq!(JobSpec::parse(&spec.to_json()).unwrap(), spec);
}

#[test]
fn chains_that_begin_with_a_fresh_stage_are_spread_over_the_machines_and_keep_their_order() {
    let mut text = String::from("name = \"many\"\n[vm]\nmachines = 3\n");
    for (name, fresh) in [("a", false), ("b", true), ("c", false), ("d", true), ("e", true)] {
        text += &format!("[[stages]]\nname = {name:?}\nrun = \"true\"\nfresh = {fresh}\n");
    }
    let plan = plan(&Scenario::parse(&text).unwrap(), &kernel(), &Choices::default()).unwrap();
    let places = JobPlaces {
        run: "20261121-142530-7f3a".parse().unwrap(),
        folder: "/runs/1".into(),
        boot: "/cache/vmlinux".into(),
        initramfs: Some("/cache/initramfs".into()),
        root: JobRoot::default(),
        modules: vec![],
        pool: None,
        disks: vec![],
        warm: None,
    };
    let jobs = plan.job_specs(&places).unwrap();
    let shown: Vec<String> = jobs
        .iter()
        .map(|job| {
            let names: Vec<_> = job.stages.iter().map(|stage| stage.name.as_str()).collect();
            format!("{} {}+{}: {}", job.job, job.first_machine, job.machine_step, names.join(" "))
        })
        .collect();
    assert_eq!(shown, ["job-1 1+3: a e", "job-2 2+3: b c", "job-3 3+3: d"]);
}
