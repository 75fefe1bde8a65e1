// Package auth decides who calls the API and what they may do: client
// certificates, service-account tokens, RBAC, the Node authorizer, the review
// and TokenRequest endpoints, and the default cluster roles.
//
// Limits: no OIDC, webhook or bootstrap-token authentication, and no
// long-lived tokens in Secrets of type kubernetes.io/service-account-token;
// such a Secret is stored, but no token is filled in.
package auth
