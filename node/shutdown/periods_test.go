package shutdown

import (
	"fmt"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

func TestTwoPeriods(t *testing.T) {
	for _, c := range []struct {
		total, critical time.Duration
		want            string
	}{
		{30 * time.Second, 10 * time.Second, "[{0 20s} {2000000000 10s}]"},
		{30 * time.Second, 0, "[{0 30s} {2000000000 0s}]"},
		{30 * time.Second, 30 * time.Second, "[{0 0s} {2000000000 30s}]"},
		{0, 0, "[]"},
		{10 * time.Second, 11 * time.Second, "more than the 10s for all"},
		{-time.Second, 0, "no negative times"},
		{1500 * time.Millisecond, 0, "whole seconds"},
	} {
		got, err := TwoPeriods(c.total, c.critical)
		if s := fmt.Sprint(got, err); !strings.Contains(s, c.want) {
			t.Errorf("%s, %s: %s, want %s", c.total, c.critical, s, c.want)
		}
	}
}

func TestParsePeriods(t *testing.T) {
	for in, want := range map[string]string{
		"100000=1m 0=20s -5=3s": "[{-5 3s} {0 20s} {100000 1m0s}] <nil>",
		"":                      "[] <nil>",
		"10":                    `"10": want PRIORITY=TIME`,
		"ten=10s":               `"ten=10s": want PRIORITY=TIME`,
		"1=10":                  `"1=10": want a time`,
		"1=-1s":                 "want a time",
		"1=100ms":               "whole seconds",
		"1=1s 1=2s":             "two times for priority 1",
		"3000000000=1s":         "want PRIORITY=TIME",
	} {
		got, err := ParsePeriods(strings.Fields(in))
		if s := fmt.Sprint(got, err); !strings.Contains(s, want) {
			t.Errorf("%q: %s, want %s", in, s, want)
		}
	}
}

func TestGroups(t *testing.T) {
	periods, err := ParsePeriods([]string{"0=20s", "1000=10s", "2000000000=5s"})
	if err != nil {
		t.Fatal(err)
	}
	of := func(name string, priority *int32, grace int64) *v1.Pod {
		return &v1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1.PodSpec{Priority: priority, TerminationGracePeriodSeconds: &grace}}
	}
	static := of("static", nil, 30)
	static.Spec.PriorityClassName = "system-node-critical"
	pods := []*v1.Pod{of("none", nil, 30), of("low", ptr.To(int32(-10)), 30), of("between", ptr.To(int32(999)), 5), of("at", ptr.To(int32(1000)), 10),
		of("cluster", ptr.To(int32(2000000000)), 0), of("node", ptr.To(int32(2000001000)), 30), static}
	var got []string
	for _, g := range periods.groups(pods) {
		for _, p := range g.pods {
			got = append(got, fmt.Sprintf("%d:%s:%d", g.Priority, p.Name, g.grace(p)))
		}
	}
	want := "0:none:20 0:low:20 0:between:5 1000:at:10 2000000000:cluster:0 2000000000:node:5 2000000000:static:5"
	if s := strings.Join(got, " "); s != want {
		t.Errorf("got  %s\nwant %s", s, want)
	}
	if s := fmt.Sprint(periods.within(7 * time.Second)); s != "[{0 4s} {1000 2s} {2000000000 1s}]" {
		t.Errorf("within 7 s: %s", s)
	}
	if s := fmt.Sprint(periods.within(time.Minute)); s != fmt.Sprint(periods) {
		t.Errorf("within a minute: %s", s)
	}
}
