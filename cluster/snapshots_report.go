package cluster

import (
	"regexp"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"
	"k8s.io/component-base/metrics"
	"k8s.io/component-base/metrics/legacyregistry"

	"github.com/skiff-sh/skiff/backup"
)

// Metrics of scheduled snapshots on /metrics of the API port; place is dir or s3.
var (
	snapshotLast = metrics.NewGaugeVec(&metrics.GaugeOpts{Name: "skiff_snapshot_last_success_timestamp_seconds",
		Help: "When the newest snapshot in the place was saved, in seconds since 1970.", StabilityLevel: metrics.ALPHA}, []string{"place"})
	snapshotTook = metrics.NewGaugeVec(&metrics.GaugeOpts{Name: "skiff_snapshot_last_duration_seconds",
		Help: "How long the last successful save of this process took.", StabilityLevel: metrics.ALPHA}, []string{"place"})
	snapshotSize = metrics.NewGaugeVec(&metrics.GaugeOpts{Name: "skiff_snapshot_last_size_bytes",
		Help: "Size of the newest snapshot in the place.", StabilityLevel: metrics.ALPHA}, []string{"place"})
	snapshotFailures = metrics.NewCounterVec(&metrics.CounterOpts{Name: "skiff_snapshot_failures_total",
		Help: "Attempts of this process to save a scheduled snapshot that failed.", StabilityLevel: metrics.ALPHA}, []string{"place"})
	registerSnapshotMetrics = sync.OnceFunc(func() {
		legacyregistry.MustRegister(snapshotLast, snapshotTook, snapshotSize, snapshotFailures)
	})
)

// snapshotReport tells of snapshots in metrics, and in Events where they fail:
// nothing else about them is written to the log.
type snapshotReport struct {
	s      *Server
	about  *corev1.ObjectReference
	events record.EventBroadcaster
	record record.EventRecorder
	begun  chan struct{} // closed by start: Events from before are lost
}

// SnapshotFailed is the reason of the Event about a snapshot that failed.
const SnapshotFailed = "SnapshotFailed"

func newSnapshotReport(s *Server) *snapshotReport {
	registerSnapshotMetrics()
	r := &snapshotReport{s: s, events: record.NewBroadcaster(), begun: make(chan struct{})}
	r.about = &corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: s.cfg.Name, UID: types.UID(s.cfg.Name)}
	if s.cfg.NodePort == 0 { // no Node of that name
		r.about = &corev1.ObjectReference{APIVersion: "v1", Kind: "Namespace", Name: "kube-system"}
	}
	r.record = r.events.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "skiff-snapshots", Host: s.cfg.Name})
	snapshotFailures.WithLabelValues("dir").Add(0)
	if s.cfg.Snapshots.Remote != nil {
		snapshotFailures.WithLabelValues("s3").Add(0)
	}
	return r
}

// start lets Events be written until stop. It is called once.
func (r *snapshotReport) start() (stop func()) {
	defer close(r.begun)
	client := r.s.client()
	if client == nil {
		return func() {}
	}
	r.events.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: client.CoreV1().Events("")})
	return r.events.Shutdown
}

func kindOfPlace(p backup.Place) string {
	if _, ok := p.(backup.Dir); ok {
		return "dir"
	}
	return "s3"
}

func (r *snapshotReport) done(p backup.Place, st backup.PlaceStatus) {
	kind := kindOfPlace(p)
	if st.Error != "" {
		snapshotFailures.WithLabelValues(kind).Inc()
		return
	}
	if st.Last == nil {
		return
	}
	snapshotLast.WithLabelValues(kind).Set(float64(st.Last.At.Unix()))
	snapshotSize.WithLabelValues(kind).Set(float64(st.Last.Size))
	if st.Last.Took > 0 {
		snapshotTook.WithLabelValues(kind).Set(st.Last.Took.Seconds())
	}
}

// random is in names of files that are being written. Without it the same failure
// has the same text, and one Event that counts.
var random = regexp.MustCompile(`\.tmp-[0-9]+`)

func (r *snapshotReport) failed(p backup.Place, st backup.PlaceStatus) {
	text := random.ReplaceAllString(st.Error, ".tmp")
	if !strings.Contains(text, p.String()) {
		text = p.String() + ": " + text
	}
	r.record.Eventf(r.about, corev1.EventTypeWarning, SnapshotFailed, "Scheduled snapshot of %s failed: %s", r.s.cfg.Name, text)
}
