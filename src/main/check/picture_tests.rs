//! Tests that the picture has a mark for each event at the right place.
//!
//! Each test reads the picture as XML, so a picture that is not well-formed fails, too.

use std::time::Duration;

use roxmltree::{Document, Node};

use super::load::Timeline;
use super::load::timeline::{Band, Bucket};
use super::picture::{COLUMNS, LEFT, Picture, RIGHT, grouped, round, short};

const TITLE: &str = "<a & \"b\">'\u{1}";

fn picture(timeline: &Timeline) -> Picture<'_> {
    Picture { title: TITLE, timeline, scale: None, has_notes: false }
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn marks<'a>(document: &'a Document<'_>, class: &str) -> Vec<Node<'a, 'a>> {
    document.descendants().filter(|node| node.attribute("class") == Some(class)).collect()
}

fn number(node: &Node<'_, '_>, name: &str) -> f64 {
    node.attribute(name).unwrap().parse().unwrap()
}

/// Each event has a mark at its time, and nothing else has one.
#[test]
fn each_event_has_a_mark() {
    let mut timeline = Timeline::new();
    for (time, bucket) in [
        (50, Bucket { answered: 10, slowest: ms(10), ..Bucket::default() }),
        (250, Bucket { refused: 2, attempts: 5, ..Bucket::default() }),
        (350, Bucket { attempts: 7, ..Bucket::default() }),
        (550, Bucket { lost: 3, ..Bucket::default() }),
        (650, Bucket { told: 1, ..Bucket::default() }),
        (750, Bucket { untold: 4, ..Bucket::default() }),
        (999, Bucket { answered: 1_500, slowest: ms(1_000), ..Bucket::default() }),
    ] {
        *timeline.at(ms(time)) = bucket;
    }
    timeline.add_restart(Band { begun: ms(200), ended: ms(400) });
    timeline.add_restart(Band { begun: ms(700), ended: ms(700) });
    let text = picture(&timeline).draw();
    let document = Document::parse(&text).unwrap();

    let title = document.descendants().find(|node| node.has_tag_name("title")).unwrap();
    assert_eq!(title.text(), Some("<a & \"b\">'\u{fffd}"));
    let summary = document.descendants().find(|node| node.has_tag_name("desc")).unwrap();
    assert_eq!(
        summary.text().unwrap(),
        "2 restarts (up to 200 ms) · 1,510 requests answered, 2 refused, 3 lost · 5 \
         connections closed by the server"
    );
    let column = (RIGHT - LEFT) / 10.0;
    for (class, columns) in [
        ("refused", &[2, 3][..]),
        ("lost", &[5]),
        ("told", &[6]),
        ("untold", &[7]),
        ("restart", &[2, 7]),
    ] {
        let marks = marks(&document, class);
        assert_eq!(marks.len(), columns.len(), "{class}");
        for (mark, place) in marks.iter().zip(columns) {
            let x = LEFT + column * f64::from(*place);
            assert!((number(mark, "x") - x).abs() < 0.1, "{class}: {mark:?}");
        }
    }
    let wide = marks(&document, "restart").iter().map(|it| number(it, "width")).collect::<Vec<_>>();
    assert!((wide[0] - 2.0 * column).abs() < 0.1 && wide[1] == 2.0, "{wide:?}");
    // The sums beside the lines are those of refused, lost and closed.
    let sums: Vec<_> = marks(&document, "bad").iter().filter_map(Node::text).collect();
    assert_eq!(sums, ["2", "3", "5"]);
}

/// The heights follow the numbers, on the same axis in every picture.
#[test]
fn heights_follow_the_numbers() {
    let mut timeline = Timeline::new();
    *timeline.at(ms(0)) = Bucket { answered: 50, slowest: ms(10), ..Bucket::default() };
    *timeline.at(ms(100)) = Bucket { answered: 100, slowest: ms(100_000), ..Bucket::default() };
    let heights = |scale, class| {
        let text = Picture { scale, ..picture(&timeline) }.draw();
        let document = Document::parse(&text).unwrap();
        let path = marks(&document, class)[0].attribute("d").unwrap().to_owned();
        let heights = path.split('V').skip(1).map(|rest| rest.split(['H', 'Z']).next().unwrap());
        heights.map(|height| height.parse().unwrap()).collect::<Vec<f64>>()
    };
    assert_eq!(heights(None, "requests"), [95.0, 68.0, 122.0]);
    assert_eq!(heights(Some(200), "requests"), [108.5, 95.0, 122.0]);
    // The number is larger than the scale.
    assert_eq!(heights(Some(50), "requests"), [68.0, 68.0, 122.0]);
    assert_eq!(heights(None, "times"), [193.6, 143.0, 208.0]);
}

/// A picture of a load that lasts for days is not larger, and still has every event.
#[test]
fn a_long_load_is_drawn_in_bounded_size() {
    let mut timeline = Timeline::new();
    for minute in 0..3 * 24 * 60 {
        let bucket = timeline.at(Duration::from_secs(60 * minute));
        *bucket = bucket.and(Bucket { answered: 1, lost: 1, ..Bucket::default() });
    }
    assert!(timeline.buckets().len() <= 6000);
    let text = Picture { has_notes: true, ..picture(&timeline) }.draw();
    let document = Document::parse(&text).unwrap();
    assert!(marks(&document, "note").len() <= COLUMNS);
    let sums: Vec<_> = marks(&document, "bad").iter().filter_map(Node::text).collect();
    assert_eq!(sums, ["4,320"]);
    assert!(text.len() < 200_000, "{}", text.len());
}

#[test]
fn a_load_without_an_event_is_drawn() {
    let timeline = Timeline::new();
    let text = picture(&timeline).draw();
    let document = Document::parse(&text).unwrap();
    assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
    for class in ["refused", "lost", "told", "untold", "restart", "bad", "note"] {
        assert!(marks(&document, class).is_empty(), "{class}");
    }
}

#[test]
fn numbers_are_read_easily() {
    for (number, top, text) in
        [(0, 1, "0"), (3, 5, "3"), (999, 1000, "999"), (1_001, 2_000, "1,001")]
    {
        assert_eq!((round(number), &*grouped(number)), (top, text));
    }
    assert_eq!(grouped(1_234_567), "1,234,567");
    assert_eq!((short(ms(12)), short(ms(1_260))), ("12 ms".to_owned(), "1.3 s".to_owned()));
}
