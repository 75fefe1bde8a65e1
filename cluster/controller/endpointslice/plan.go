package endpointslice

import (
	"cmp"
	"maps"
	"slices"

	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
)

// maxEndpoints is how many endpoints a slice holds at most.
const maxEndpoints = 100

// plan is what leads from the slices that are there to those that should be.
type plan struct {
	create, update, remove []*discoveryv1.EndpointSlice
}

// decide fits groups into slices. template is an empty slice with the right
// labels and owner. Endpoints stay in the slice that they are in, so that few
// slices change; what is new fills up slices that change anyway, then others.
// Without any endpoint, one empty slice remains for each family, so that readers
// know that there are none.
func decide(template *discoveryv1.EndpointSlice, groups []group, existing []*discoveryv1.EndpointSlice, families []discoveryv1.AddressType) plan {
	var p plan
	byKey := map[string][]*discoveryv1.EndpointSlice{}
	for _, s := range existing {
		key := group{family: s.AddressType, ports: s.Ports}.key()
		byKey[key] = append(byKey[key], s)
	}
	filled := map[discoveryv1.AddressType]bool{}
	for _, g := range groups {
		filled[g.family] = filled[g.family] || len(g.endpoints) > 0
		p.fit(template, g, byKey[g.key()])
		delete(byKey, g.key())
	}
	for _, family := range families {
		if filled[family] {
			continue
		}
		empty := group{family: family, ports: []discoveryv1.EndpointPort{}}
		p.fit(template, empty, byKey[empty.key()])
		delete(byKey, empty.key())
	}
	for _, key := range slices.Sorted(maps.Keys(byKey)) {
		p.remove = append(p.remove, byKey[key]...)
	}
	return p
}

// bin is a slice while it is being filled.
type bin struct {
	stored    *discoveryv1.EndpointSlice // nil for a new one
	endpoints []discoveryv1.Endpoint
	changed   bool
}

// fit distributes one group over the slices that have its ports.
func (p *plan) fit(template *discoveryv1.EndpointSlice, g group, existing []*discoveryv1.EndpointSlice) {
	slices.SortFunc(existing, func(a, b *discoveryv1.EndpointSlice) int { return cmp.Compare(a.Name, b.Name) })
	missing := map[string]discoveryv1.Endpoint{}
	for _, e := range g.endpoints {
		missing[identity(e)] = e
	}
	var bins []*bin
	for _, s := range existing {
		b := &bin{stored: s, changed: !sameMeta(s, template)}
		for _, have := range s.Endpoints {
			want, ok := missing[identity(have)]
			if !ok {
				b.changed = true
				continue
			}
			delete(missing, identity(have))
			b.changed = b.changed || !equality.Semantic.DeepEqual(have, want)
			b.endpoints = append(b.endpoints, want)
		}
		bins = append(bins, b)
	}
	var rest []discoveryv1.Endpoint
	for _, e := range g.endpoints { // in order
		if _, ok := missing[identity(e)]; ok {
			rest = append(rest, e)
		}
	}
	for _, changed := range []bool{true, false} {
		for _, b := range bins {
			if b.changed == changed {
				rest = b.take(rest)
			}
		}
	}
	for len(rest) > 0 || len(bins) == 0 {
		b := &bin{changed: true}
		rest = b.take(rest)
		bins = append(bins, b)
	}
	p.settle(template, g, bins)
}

// take moves endpoints from rest into b while there is room.
func (b *bin) take(rest []discoveryv1.Endpoint) []discoveryv1.Endpoint {
	n := min(len(rest), max(0, maxEndpoints-len(b.endpoints)))
	if n > 0 {
		b.endpoints = append(b.endpoints, rest[:n]...)
		b.changed = true
	}
	return rest[n:]
}

// settle turns bins into writes; empty ones go, but one stays if all are.
func (p *plan) settle(template *discoveryv1.EndpointSlice, g group, bins []*bin) {
	kept := 0
	for _, b := range bins {
		if len(b.endpoints) > 0 {
			kept++
		}
	}
	for _, b := range bins {
		switch {
		case len(b.endpoints) == 0 && (kept > 0 || len(g.endpoints) > 0):
			if b.stored != nil {
				p.remove = append(p.remove, b.stored)
			}
		case b.stored == nil:
			kept++
			s := template.DeepCopy()
			s.AddressType, s.Ports, s.Endpoints = g.family, g.ports, b.endpoints
			p.create = append(p.create, s)
		case b.changed:
			kept++
			s := b.stored.DeepCopy()
			s.Labels = maps.Clone(template.Labels)
			s.OwnerReferences = template.OwnerReferences
			s.Endpoints = b.endpoints
			p.update = append(p.update, s)
		default:
			kept++
		}
	}
}

// sameMeta reports whether a slice has the labels and the owner of template.
func sameMeta(s, template *discoveryv1.EndpointSlice) bool {
	return maps.Equal(s.Labels, template.Labels) &&
		equality.Semantic.DeepEqual(s.OwnerReferences, template.OwnerReferences)
}
