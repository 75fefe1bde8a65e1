package core

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/skiff-sh/skiff/cluster/registry/allocator"
)

// RepairServices makes reservations and Services agree after crashes: it
// reserves what a Service uses and nobody holds, and gives up what no Service
// uses. List gives all Services there are. The leader calls it when its term
// begins; where all agrees, it writes nothing.
func RepairServices(ctx context.Context, list func(context.Context) ([]corev1.Service, error), r allocator.Reservations, log *slog.Logger) error {
	services, err := list(ctx)
	if err != nil {
		return fmt.Errorf("repair service reservations: list services: %w", err)
	}
	users := map[string]string{} // name -> owner
	for i := range services {
		s := &services[i]
		for name := range holdings(s) {
			if other, twice := users[name]; twice {
				log.Error("two services use the same address or port: delete one of them", "name", name, "services", []string{other, owner(s)})
				continue
			}
			users[name] = owner(s)
			held, ok := r.Get(name)
			switch {
			case !ok:
				err = r.Reserve(ctx, name, owner(s), nil)
			case held.Owner != owner(s):
				err = r.Reserve(ctx, name, owner(s), &held)
			}
			if err != nil {
				return fmt.Errorf("repair service reservations: %w", err)
			}
		}
	}
	var unused []allocator.Reservation
	for _, prefix := range []string{ipPrefix, portPrefix} {
		r.Each(prefix, func(held allocator.Reservation) bool {
			if users[held.Name] != held.Owner && time.Since(held.Since) >= allocator.InFlight {
				unused = append(unused, held)
			}
			return true
		})
	}
	if len(unused) == 0 {
		return nil
	}
	// Some may have come into use since the list was made.
	if services, err = list(ctx); err != nil {
		return fmt.Errorf("repair service reservations: list services: %w", err)
	}
	clear(users)
	for i := range services {
		for name := range holdings(&services[i]) {
			users[name] = owner(&services[i])
		}
	}
	for _, held := range unused {
		if users[held.Name] == held.Owner {
			continue
		}
		if err := r.Release(ctx, held.Name, held.Owner); err != nil {
			return fmt.Errorf("repair service reservations: %w", err)
		}
		log.Info("gave up a reservation that no service uses", "name", held.Name, "owner", held.Owner)
	}
	return nil
}
