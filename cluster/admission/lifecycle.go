package admission

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/admission"
)

// lifecycle keeps new objects out of namespaces that are missing or being
// deleted, and the namespaces every cluster needs from deletion.
type lifecycle struct {
	*admission.Handler
	objects Objects
}

var immortal = map[string]bool{metav1.NamespaceDefault: true, metav1.NamespaceSystem: true, metav1.NamespacePublic: true,
	corev1.NamespaceNodeLease: true} // it always has leases

// Admit implements admission.MutationInterface; it changes nothing, but has to
// come before the mutations of others.
func (l *lifecycle) Admit(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	if a.GetOperation() == admission.Delete && a.GetKind().GroupKind() == (corev1.SchemeGroupVersion.WithKind("Namespace").GroupKind()) && immortal[a.GetName()] {
		return apierrors.NewForbidden(a.GetResource().GroupResource(), a.GetName(), fmt.Errorf("this namespace may not be deleted"))
	}
	if a.GetOperation() != admission.Create || a.GetNamespace() == "" || a.GetResource().GroupResource() == namespacesResource {
		return nil
	}
	// Asking about access stores nothing.
	if a.GetResource().Group == "authorization.k8s.io" {
		return nil
	}
	ns, err := l.objects.Namespace(ctx, a.GetNamespace())
	if err != nil {
		if apierrors.IsNotFound(err) {
			return apierrors.NewNotFound(namespacesResource, a.GetNamespace())
		}
		return apierrors.NewInternalError(fmt.Errorf("read namespace %s: %w", a.GetNamespace(), err))
	}
	if ns.Status.Phase != corev1.NamespaceTerminating && ns.DeletionTimestamp == nil {
		return nil
	}
	e := admission.NewForbidden(a, fmt.Errorf("unable to create new content in namespace %s because it is being terminated", a.GetNamespace()))
	if s, ok := e.(*apierrors.StatusError); ok && s.ErrStatus.Details != nil {
		s.ErrStatus.Details.Causes = append(s.ErrStatus.Details.Causes, metav1.StatusCause{
			Type: corev1.NamespaceTerminatingCause, Message: fmt.Sprintf("namespace %s is being terminated", a.GetNamespace()), Field: "metadata.namespace"})
	}
	return e
}
