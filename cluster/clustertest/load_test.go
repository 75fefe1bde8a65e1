//go:build integration || soak

package clustertest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	k8swatch "k8s.io/apimachinery/pkg/watch"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
)

const (
	loadClients  = 32
	loadWatchers = 8
	killEvery    = 20 * time.Second
	deadFor      = 5 * time.Second
	longestGap   = 20 * time.Second // ten times the goal
)

// reason is the end of an error, behind its addresses.
var reason = regexp.MustCompile(`[^:]*(: [a-z ]+)?$`)

// load is clients of the API that create, update with preconditions, delete,
// read and watch through all servers.
type load struct {
	*world
	servers []*apiServer
	base    int64 // revision at the beginning
}

func (l *load) maps(s *apiServer) corev1client.ConfigMapInterface {
	return s.client.CoreV1().ConfigMaps(metav1.NamespaceDefault)
}

// TestLeadersKilledUnderLoad kills the leader every 20 seconds while 32 clients
// write and read through all servers and some watch: what they saw is
// linearizable, and no watcher misses or repeats an event.
func TestLeadersKilledUnderLoad(t *testing.T) {
	l := &load{world: newWorld(uint64(time.Now().UnixNano()), options{}, "", slog.New(slog.DiscardHandler)), servers: apiCluster(t)}
	l.keys = nil
	for i := range 40 {
		l.keys = append(l.keys, fmt.Sprintf("load-%02d", i))
	}
	first, err := l.maps(l.servers[0]).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	l.base = number64(first.ResourceVersion)
	busy, rest := context.WithCancel(t.Context())
	seeing, end := context.WithCancel(t.Context())
	defer rest()
	defer end()
	var clients, watchers sync.WaitGroup
	for n := range loadWatchers {
		v := &watch{name: fmt.Sprintf("watcher %d", n), parts: []*part{{from: l.base, upto: l.base}}}
		l.watches = append(l.watches, v)
		watchers.Go(func() { l.watchAPI(seeing, v.parts[0], n) })
	}
	for n := range loadClients {
		clients.Go(func() { l.clientAPI(busy, n) })
	}
	var gaps []time.Duration
	for i := range loadKills {
		time.Sleep(killEvery - deadFor)
		leader := awaitVoters(t, l.servers, 2)
		killed := l.clock.Load()
		begin := time.Now()
		leader.kill()
		gap := l.nextWrite(killed, begin)
		t.Logf("kill %d, of %s: a write that began later is acknowledged after %v", i+1, leader.Name, gap.Round(time.Millisecond))
		if gaps = append(gaps, gap); gap > longestGap {
			t.Errorf("no write for %v", gap)
		}
		time.Sleep(deadFor)
		leader.start(t)
	}
	awaitVoters(t, l.servers, 3)
	time.Sleep(2 * time.Second)
	rest()
	clients.Wait()
	slices.Sort(gaps)
	t.Logf("%d clients, %d kills: writes again after %v (median), %v (max)", loadClients, loadKills,
		gaps[len(gaps)/2].Round(time.Millisecond), gaps[len(gaps)-1].Round(time.Millisecond))
	last := ""
	for _, s := range l.servers {
		all, err := l.maps(s).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		last = all.ResourceVersion
	}
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end) && !l.watchedUntil(number64(last)); {
		time.Sleep(100 * time.Millisecond)
	}
	end()
	watchers.Wait()
	l.checkLoad(t)
}

func number64(s string) int64 {
	n, _ := strconv.ParseInt(s, 10, 64)
	return n
}

// nextWrite waits for a write whose call came after a moment.
func (l *load) nextWrite(after int64, begin time.Time) time.Duration {
	for time.Since(begin) < time.Minute {
		l.mu.Lock()
		for i := len(l.ops) - 1; i >= 0 && l.ops[i].ret > after; i-- {
			if o := l.ops[i]; o.kind <= remove && o.outcome == done && o.call > after {
				l.mu.Unlock()
				return time.Since(begin)
			}
		}
		l.mu.Unlock()
		time.Sleep(5 * time.Millisecond)
	}
	return time.Minute
}

// watchedUntil says whether all watchers have seen the newest event of the keys.
func (l *load) watchedUntil(rev int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	newest := int64(0)
	for r := range l.history {
		if r <= rev {
			newest = max(newest, r)
		}
	}
	for _, o := range l.ops {
		if o.outcome == done && o.kind <= update {
			newest = max(newest, o.rev)
		}
	}
	for _, v := range l.watches {
		if v.parts[0].upto < newest {
			return false
		}
	}
	return true
}

func (l *load) clientAPI(ctx context.Context, n int) {
	r := rand.New(rand.NewPCG(l.seed, 100+uint64(n)))
	seen := map[string]version{}
	for i := 0; ctx.Err() == nil; i++ {
		time.Sleep(time.Duration(r.Int64N(int64(100 * time.Millisecond))))
		s := pick(r, l.servers)
		o := op{client: n, key: pick(r, l.keys), value: fmt.Sprintf("%d.%d", n, i), host: s.Name}
		known := seen[o.key]
		switch x := r.IntN(100); {
		case x < 20 || known.rev == 0 && x < 60:
			o.kind = create
		case x < 50:
			o.kind, o.expect = update, known.rev
		case x < 60:
			o.kind, o.expect, o.value = remove, known.rev, known.value
		case x < 95:
			o.kind = get
		default:
			o.kind = list
		}
		l.doAPI(ctx, s, &o)
		switch {
		case o.outcome == missing || o.kind == remove && o.outcome == done:
			delete(seen, o.key)
		case o.outcome == done && o.items == nil:
			seen[o.key] = version{o.value, o.rev}
		}
		maps.Copy(seen, o.items)
	}
}

func (l *load) doAPI(ctx context.Context, s *apiServer, o *op) {
	ctx, cancel := context.WithTimeout(ctx, 4*time.Second)
	defer cancel()
	o.call = l.clock.Add(1)
	err := l.carryOutAPI(ctx, s, o)
	l.mu.Lock()
	defer l.mu.Unlock()
	o.ret = l.clock.Add(1)
	if err != nil {
		o.why = err.Error()
	}
	switch {
	case err == nil:
	case apierrors.IsAlreadyExists(err):
		o.outcome = exists
	case apierrors.IsNotFound(err):
		o.outcome = missing
	case apierrors.IsConflict(err):
		o.outcome = conflict
	case apierrors.IsServiceUnavailable(err), apierrors.IsTooManyRequests(err), errors.Is(err, syscall.ECONNREFUSED):
		o.outcome = failed
	case o.kind > remove:
		o.outcome = failed
	default:
		o.outcome = unknown
	}
	l.ops = append(l.ops, *o)
}

func configMap(o *op) *corev1.ConfigMap {
	m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: o.key}, Data: map[string]string{annotation: o.value}}
	if o.expect != 0 {
		m.ResourceVersion = strconv.FormatInt(o.expect, 10)
	}
	return m
}

func (l *load) carryOutAPI(ctx context.Context, s *apiServer, o *op) error {
	api := l.maps(s)
	var m *corev1.ConfigMap
	var err error
	switch o.kind {
	case create:
		m, err = api.Create(ctx, configMap(o), metav1.CreateOptions{})
	case update:
		m, err = api.Update(ctx, configMap(o), metav1.UpdateOptions{})
	case get:
		m, err = api.Get(ctx, o.key, metav1.GetOptions{})
		if err == nil {
			o.value = m.Data[annotation]
		}
	case remove: // the answer does not tell the revision, see checkLoad
		rv := strconv.FormatInt(o.expect, 10)
		return api.Delete(ctx, o.key, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{ResourceVersion: &rv}})
	default:
		all, err := api.List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		o.rev, o.items = number64(all.ResourceVersion), map[string]version{}
		for _, m := range all.Items {
			if strings.HasPrefix(m.Name, "load-") {
				o.items[m.Name] = version{m.Data[annotation], number64(m.ResourceVersion)}
			}
		}
		return nil
	}
	if err == nil {
		o.rev = number64(m.ResourceVersion)
	}
	return err
}

// watchAPI follows all keys, from one server to the next.
func (l *load) watchAPI(ctx context.Context, p *part, n int) {
	r := rand.New(rand.NewPCG(l.seed, 200+uint64(n)))
	for ctx.Err() == nil {
		limited, cancel := context.WithTimeout(ctx, time.Duration(1+r.IntN(10))*time.Second)
		s := pick(r, l.servers)
		l.mu.Lock()
		from := p.upto
		l.mu.Unlock()
		in, err := l.maps(s).Watch(limited, metav1.ListOptions{ResourceVersion: strconv.FormatInt(from, 10), AllowWatchBookmarks: true})
		if err == nil {
			for e := range in.ResultChan() {
				l.takeAPI(p, e, s.Name)
			}
			in.Stop()
		} else {
			time.Sleep(50 * time.Millisecond)
		}
		cancel()
	}
}

func (l *load) takeAPI(p *part, e k8swatch.Event, host string) {
	m, ok := e.Object.(*corev1.ConfigMap)
	if !ok {
		if err := apierrors.FromObject(e.Object); apierrors.IsResourceExpired(err) || apierrors.IsGone(err) {
			l.anomaly("a watch has to begin anew: %v", err)
		}
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	rev := number64(m.ResourceVersion)
	p.upto = max(p.upto, rev)
	if e.Type == k8swatch.Bookmark || !strings.HasPrefix(m.Name, "load-") {
		return
	}
	s := seen{rev: rev, key: m.Name, value: m.Data[annotation], host: host}
	if e.Type == k8swatch.Deleted {
		s.value = ""
	}
	p.events = append(p.events, s)
	now := event{key: storeKeys + s.key, value: s.value, from: host}
	if old, ok := l.history[rev]; ok && (old.key != now.key || old.value != now.value) {
		l.anomalies = append(l.anomalies, fmt.Sprintf("revision %d is %v and %v", rev, old, now))
	}
	l.history[rev] = now
}

// checkLoad takes what any watcher saw as the history.
func (l *load) checkLoad(t *testing.T) {
	begin := time.Now()
	l.sparse = true
	h := l.newHistory()
	for i := range l.ops {
		o := &l.ops[i]
		if o.kind != remove || o.outcome != done {
			continue
		}
		// The event that ended the version.
		of := h.byKey[o.key]
		at := slices.IndexFunc(of, func(e int) bool { return h.events[e].rev == o.expect })
		if at < 0 || at+1 == len(of) || h.events[of[at+1]].value != "" {
			l.anomaly("lost: %v", *o)
			continue
		}
		o.rev = h.events[of[at+1]].rev
	}
	l.checkOps(h)
	for _, v := range l.watches {
		l.stats.Watched += l.checkWatch(v, h)
	}
	count := map[outcome]int{}
	why := map[string]int{}
	for _, o := range l.ops {
		count[o.outcome]++
		if o.outcome == unknown {
			why[reason.FindString(o.why)]++
		}
	}
	kinds := map[string]int{}
	for _, o := range l.ops {
		if o.outcome <= conflict {
			kinds[kindNames[o.kind]]++
		}
	}
	t.Logf("%d operations (%d writes without an answer, %d failed), answered: %v", len(l.ops), count[unknown], count[failed], kinds)
	t.Logf("%d events, %d seen by %d watchers; checked in %v", len(h.events), l.stats.Watched, len(l.watches), time.Since(begin).Round(time.Millisecond))
	if count[done] < 100*loadKills {
		t.Errorf("only %d operations succeeded", count[done])
	}
	for w, n := range why {
		t.Logf("without an answer: %d times %s", n, w)
	}
	for _, a := range l.anomalies {
		t.Error(a)
	}
}
