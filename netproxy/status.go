package netproxy

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Status is what a node's network is doing, for people and for skiff status.
type Status struct {
	Ready      bool          `json:"ready"`
	PodCIDR    string        `json:"podCIDR,omitempty"`
	Pods       int           `json:"pods"`
	Peers      int           `json:"peers"`
	Services   int64         `json:"services"`
	LastSync   time.Time     `json:"lastSync"`
	LastTook   time.Duration `json:"lastTook"`
	SyncErrors uint64        `json:"syncErrors"`
	DNSQueries uint64        `json:"dnsQueries"`
	DNSFailed  uint64        `json:"dnsFailed"`
}

// Status returns the present state.
func (p *Proxy) Status() Status {
	pods, peers := p.network.Counts()
	st, d := p.services.Stats(), p.dns.Stats()
	s := Status{
		Pods: pods, Peers: peers, Services: st.Services.Load(), SyncErrors: st.Errors.Load(),
		LastTook: time.Duration(st.LastTook.Load()), DNSQueries: d.Queries.Load(), DNSFailed: d.Failures.Load(),
	}
	if ns := st.LastSync.Load(); ns != 0 {
		s.LastSync = time.Unix(0, ns)
	}
	if r := p.network.PodCIDR(); r.IsValid() {
		s.PodCIDR = r.String()
	}
	select {
	case <-p.ready:
		s.Ready = true
	default:
	}
	return s
}

// metric is one number that the collector reads when it is asked.
type metric struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	read func() float64
}

// Collector returns the metrics of this node's network.
func (p *Proxy) Collector() prometheus.Collector {
	st, d := p.services.Stats(), p.dns.Stats()
	count := func(name, help string, read func() uint64) metric {
		return metric{prometheus.NewDesc("skiff_netproxy_"+name, help, nil, nil), prometheus.CounterValue, func() float64 { return float64(read()) }}
	}
	gauge := func(name, help string, read func() float64) metric {
		return metric{prometheus.NewDesc("skiff_netproxy_"+name, help, nil, nil), prometheus.GaugeValue, read}
	}
	return collector{
		gauge("services", "Services programmed in the kernel.", func() float64 { return float64(st.Services.Load()) }),
		gauge("pods", "Pods attached on this node.", func() float64 { n, _ := p.network.Counts(); return float64(n) }),
		gauge("last_sync_duration_seconds", "Duration of the last service sync.", func() float64 { return time.Duration(st.LastTook.Load()).Seconds() }),
		count("syncs_total", "Service syncs.", st.Syncs.Load),
		count("sync_errors_total", "Service syncs that failed.", st.Errors.Load),
		count("full_syncs_total", "Syncs of every service against the kernel.", st.Resyncs.Load),
		count("elements_total", "Map elements added and deleted.", st.Elements.Load),
		count("udp_entries_purged_total", "UDP connection tracking entries deleted.", st.UDPPurged.Load),
		count("dns_queries_total", "DNS questions.", d.Queries.Load),
		count("dns_cluster_total", "DNS questions about names of the cluster.", d.Cluster.Load),
		count("dns_forwarded_total", "DNS questions about other names.", d.Forwarded.Load),
		count("dns_cache_hits_total", "Forwarded questions answered from the cache.", d.CacheHits.Load),
		count("dns_cache_misses_total", "Forwarded questions not in the cache.", d.CacheMisses.Load),
		count("dns_name_errors_total", "DNS answers NXDOMAIN.", d.NameErrors.Load),
		count("dns_failures_total", "DNS answers SERVFAIL.", d.Failures.Load),
		count("dns_upstream_errors_total", "Failed questions to upstream resolvers.", d.UpstreamErrors.Load),
		count("dns_truncated_total", "Truncated DNS answers.", d.Truncated.Load),
	}
}

type collector []metric

func (c collector) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range c {
		ch <- m.desc
	}
}

func (c collector) Collect(ch chan<- prometheus.Metric) {
	for _, m := range c {
		ch <- prometheus.MustNewConstMetric(m.desc, m.kind, m.read())
	}
}
